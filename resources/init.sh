#!/bin/sh
# The first program of a test guest. Tells about the machine in sections ("=== NAME", then lines), and ends it as the word
# end=poweroff|reboot|panic|debug-exit|wait on the kernel's command line says.
mount -t proc proc /proc
mount -t sysfs sysfs /sys
[ -e /dev/port ] || mount -t devtmpfs dev /dev
echo 1 > /proc/sys/kernel/printk

section() { echo "=== $1"; }

section cpus
cat /sys/devices/system/cpu/online
section pci
cd /sys/bus/pci/devices
for function in *; do
	echo "$function $(cat $function/vendor $function/device $function/class $function/revision $function/irq | tr '\n' ' ')"
done
for function in *; do
	section "config $function"
	od -A n -v -t x1 $function/config
done
section interrupts
cat /proc/interrupts
section iomem
cat /proc/iomem
section ioports
cat /proc/ioports
section rtc
cat /sys/class/rtc/rtc0/since_epoch 2>/dev/null || date +%s
section uptime
cat /proc/uptime
section end

case $end in
reboot) reboot -f ;;
panic) exit 1 ;;
# 5 to port 0x501, which is 1281.
debug-exit) printf '\005' | dd of=/dev/port bs=1 seek=1281 2>/dev/null ;;
wait) sleep 1000 ;;
*) poweroff -f ;;
esac
sleep 1000
