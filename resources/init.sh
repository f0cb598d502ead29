#!/bin/sh
# The first program of a test guest. Tells about the machine in sections ("=== NAME", then lines), and ends it as the word
# end=poweroff|reboot|panic|debug-exit|wait on the kernel's command line says.
mount -t proc proc /proc
mount -t sysfs sysfs /sys
[ -e /dev/port ] || mount -t devtmpfs dev /dev
[ -n "$terminal" ] || echo 1 > /proc/sys/kernel/printk
[ -e /load-modules ] && sh /load-modules
# A console that came with a module was not there when the kernel gave this program its own.
[ -n "$terminal" ] && exec < /dev/$terminal > /dev/$terminal 2>&1
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
if [ -d /sys/bus/virtio/devices ]; then
	section virtio
	for device in /sys/bus/virtio/devices/*; do
		[ -e $device ] || continue
		driver=$(readlink $device/driver)
		echo "$(readlink -f $device) driver=${driver##*/}"
		for file in device vendor status features modalias; do echo "$file $(cat $device/$file)"; done
	done
fi
if [ -d /sys/bus/pci/drivers/virtio-pci ]; then
	section buses
	for folder in /sys/bus/pci/drivers/virtio-pci /sys/bus/virtio/devices /sys/bus/virtio/drivers /sys/bus/virtio/drivers/*; do
		echo "$folder: $(ls $folder | tr '\n' ' ')"
	done
fi
for card in /sys/class/net/e*; do
	[ -e $card ] || continue
	section "net ${card##*/}"
	ip link set ${card##*/} up
	for file in address mtu carrier operstate speed duplex tx_queue_len type addr_assign_type; do
		echo "$file $(cat $card/$file 2>/dev/null)"
	done
	ls $card/queues
	[ -x /bin/ethtool ] || continue
	section "ethtool ${card##*/}"
	for option in -k -i -l -g; do ethtool $option ${card##*/} 2>&1; done
done
if [ -e /sys/class/misc/hw_random/rng_current ]; then
	section hwrng
	cat /sys/class/misc/hw_random/rng_current /sys/class/misc/hw_random/rng_available
fi
if [ -d /sys/class/virtio-ports ]; then
	section ports
	for port in /sys/class/virtio-ports/*; do
		[ -e $port ] && echo "${port##*/} $(cat $port/name 2>/dev/null)"
	done
	ls -d /dev/hvc0 2>/dev/null
fi
for disk in /sys/block/vd*; do
	[ -e $disk ] || continue
	section "block ${disk##*/}"
	for file in size ro serial cache_type removable range discard_alignment alignment_offset queue/*; do
		[ -f $disk/$file ] && echo "$file $(cat $disk/$file 2>/dev/null)"
	done
done
if [ -x /bin/lspci ] && [ -z "$job" ]; then
	section lspci
	lspci -nn
fi
if [ "$io" = write ]; then
	section io
	dd if=/dev/urandom of=/pattern bs=64k count=64 2>/dev/null
	dd if=/pattern of=/dev/vda bs=64k seek=16 conv=fsync 2>/dev/null && echo written
	echo 3 > /proc/sys/vm/drop_caches
	dd if=/dev/vda bs=64k skip=16 count=64 2>/dev/null | cmp - /pattern && echo same
	md5sum < /pattern
fi
# Devices in slots 6 (a disk) and 7 (randomness) come and go as often as hotplug= says; whoever listens plugs and unplugs them.
# The last time the guest lets go by itself.
if [ -n "$hotplug" ]; then
	section hotplug
	slots=/sys/bus/pci/slots
	echo "slots $(ls $slots | sort -n | tr '\n' ' ')"
	dd if=/dev/urandom of=/pattern bs=64k count=16 2>/dev/null
	for round in $(seq $hotplug); do
		echo "plug $round"
		until [ -b /dev/vda ] && [ "$(cat /sys/class/misc/hw_random/rng_current)" != none ]; do usleep 50000; done
		dd if=/pattern of=/dev/vda bs=64k conv=fsync 2>/dev/null
		echo 3 > /proc/sys/vm/drop_caches
		dd if=/dev/vda bs=64k count=16 2>/dev/null | cmp - /pattern && echo "disk same"
		echo "random $(dd if=/dev/hwrng bs=16 count=1 2>/dev/null | wc -c)"
		dd if=/dev/vda of=/dev/null bs=4k 2>/dev/null &
		if [ $round = $hotplug ]; then
			for slot in 6 7; do echo 0 > $slots/$slot/power; done
		else
			echo "unplug $round"
		fi
		while [ -e /sys/bus/pci/devices/0000:00:06.0 ] || [ -e /sys/bus/pci/devices/0000:00:07.0 ]; do usleep 50000; done
		wait
		[ -e /dev/vda ] || echo "gone $round"
	done
fi
# What job= names is a function of one of these files.
if [ -n "$job" ]; then
	for file in /jobs/*.sh; do . $file; done
	section job
	job_$job
fi
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
debug-exit) printf '\005' | dd of=/dev/port bs=1 seek=1281 ;;
wait) sleep 1000 ;;
esac
poweroff -f
sleep 1000
