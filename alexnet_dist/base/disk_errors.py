"""What to do about each of the errors that an operating system gives for a path."""

from __future__ import annotations

import errno

_PERMISSION = "mend the permissions"
_MOVE = "move what lies there"
_NETWORK = "see that the disk or the network mount is there"

# Each is a remedy by itself; where something is written, another place is the second one.
_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space of your quota",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f unlimited)",
    errno.EROFS: "mount the file system for writing",
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.ENOENT: "make the folder that is missing",
    errno.ENOTDIR: "move the file that lies where a folder should be",
    errno.EISDIR: "move the folder that lies where a file should be",
    errno.EEXIST: _MOVE,
    errno.ENOTEMPTY: _MOVE,
    errno.ENAMETOOLONG: "shorten the path",
    errno.ELOOP: "remove the link that leads back to itself",
    errno.EMFILE: "raise the limit of open files (ulimit -n 4096)",
    errno.ENFILE: "end other programs: the machine has no file handles left",
    errno.ENOMEM: "free some memory",
    errno.ENOLCK: "use a file system with locks",
    errno.ENOSYS: "use a file system that can do this",
    errno.EOPNOTSUPP: "use a file system that can do this",
    errno.EXDEV: "keep the folder on one file system",
    errno.EIO: "check the disk and its cable",
    errno.EBUSY: "end the program that uses it",
    errno.ETXTBSY: "end the program that uses it",
    errno.EINTR: "start again",
    errno.EAGAIN: "start again",
    errno.ESTALE: _NETWORK,
    errno.ENODEV: _NETWORK,
    errno.ENXIO: _NETWORK,
    errno.ETIMEDOUT: _NETWORK,
    errno.EHOSTDOWN: _NETWORK,
    errno.ENOTCONN: _NETWORK,
}


def name_reason(error: OSError) -> str:
    """Why it failed, without the number and the path."""
    return error.strerror or str(error) or type(error).__name__


def name_remedy(error: OSError, otherwise: str = "") -> str:
    """What to do about an error.

    Args:
        error: of the operating system.
        otherwise: what else can be done, "use another path"; "" = nothing.
    """
    remedy = _REMEDIES.get(error.errno or 0, "" if otherwise else "check the path")
    return ", or ".join(part for part in (remedy, otherwise) if part)
