# Ends well, but not without a complaint of the kernel.
echo "BUG: this is only a test" >/dev/kmsg
