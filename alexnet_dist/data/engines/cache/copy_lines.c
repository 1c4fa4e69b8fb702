/* The lines of crops, from pictures that are mapped into memory to one buffer. */

#include <stdint.h>
#include <string.h>

/* Of the crops from `begin` to `end`: `lines` lines of `count` bytes, which lie `strides` bytes apart in a picture and
   one after the other in the buffer. A crop without a source is left as it is. */
void copy_lines(
    const int64_t *sources, const int64_t *strides, char *target, int64_t lines, int64_t count, int64_t begin,
    int64_t end
) {
    for (int64_t n = begin; n < end; n++) {
        const char *source = (const char *)(intptr_t)sources[n];
        if (source)
            for (int64_t line = 0; line < lines; line++)
                memcpy(target + (n * lines + line) * count, source + line * strides[n], (size_t)count);
    }
}
