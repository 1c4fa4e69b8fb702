"""What lies in object storage, on web servers and on the Hub, brought into the cache folder once a machine."""
