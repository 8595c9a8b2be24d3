# Crashes the kernel.
echo c >/proc/sysrq-trigger
sleep 1000
