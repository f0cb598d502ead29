# What the guests of tests/tests/guest/management.rs are told to do: work for devices that come and go.

# Waits until the file, or one of that pattern, is there.
await() { until [ -e $1 ]; do usleep 20000; done; }

# Waits until the file says this.
await_value() { until [ "$(cat $1 2>/dev/null)" = "$2" ]; do usleep 20000; done; }

# A device of each kind is in slots 6 to 10.
slots="6 7 8 9 10"

await_devices() {
	await /dev/vda
	await /sys/class/net/eth0
	await /dev/vport*p1
	until [ "$(cat /sys/class/misc/hw_random/rng_current)" != none ]; do usleep 20000; done
	until ls -d /sys/bus/virtio/drivers/virtio_balloon/virtio* > /dev/null 2>&1; do usleep 20000; done
}

# What was written is read back; then all five are kept busy.
work() {
	dd if=/pattern of=/dev/vda bs=64k conv=fsync 2>/dev/null
	echo 3 > /proc/sys/vm/drop_caches
	dd if=/dev/vda bs=64k count=16 2>/dev/null | cmp - /pattern && echo "disk same"
	dd if=/dev/vda of=/dev/null bs=64k iflag=direct 2>/dev/null &
	dd if=/dev/zero of=/dev/vda bs=64k seek=16 count=1024 oflag=direct 2>/dev/null &
	ip link set eth0 up
	ip addr add 10.0.0.1/24 dev eth0
	arp -i eth0 -s 10.0.0.2 52:54:00:00:00:02
	ping -q -i 0.01 -s 16000 10.0.0.2 > /dev/null 2>&1 &
	cat /dev/zero > $(ls /dev/vport*p1) 2>/dev/null &
	cat /dev/hwrng > /dev/null 2>&1 &
	statistics=/sys/class/net/eth0/statistics
	until [ "$(cat $statistics/tx_packets)" -gt 20 ]; do usleep 20000; done
	echo "at work"
}

# The guest lets go of all by itself.
eject() { for slot in $slots; do echo 0 > /sys/bus/pci/slots/$slot/power; done; }

await_gone() {
	for slot in $slots; do
		while [ -e /sys/bus/pci/devices/0000:00:$(printf %02x $slot).0 ]; do usleep 20000; done
	done
	# Nobody answers the pings, whose end is not the card's.
	killall ping 2>/dev/null
	wait
	[ ! -e /dev/vda ] && [ ! -e /sys/class/net/eth0 ] && ! ls /dev/vport* > /dev/null 2>&1 && echo "all gone"
}

# Reads and writes /dev/vda, the first 16 MiB of it a pattern again and again, until there is /enough.
keep_the_disk_busy() {
	dd if=/dev/urandom of=/pattern bs=64k count=16 2>/dev/null
	until [ -e /enough ]; do dd if=/dev/vda of=/dev/null bs=4k count=64 iflag=direct 2>/dev/null; done &
	(
		n=0
		until [ -e /enough ]; do
			dd if=/pattern of=/dev/vda bs=64k seek=$((n % 16 * 16)) oflag=direct 2>/dev/null
			n=$((n + 1))
		done
	) &
}

let_the_disk_rest() {
	touch /enough
	wait
	dd if=/dev/vda bs=64k count=16 iflag=direct 2>/dev/null | cmp - /pattern && echo "pattern is there"
}

# Switches the machine off when somebody presses its power button.
obey_the_power_button() {
	for events in /dev/input/event*; do
		[ "$(cat /sys/class/input/${events##*/}/device/name)" = "Power Button" ] || continue
		# Only who has it open hears of the button.
		exec 3< $events
		echo "listening to the button"
		dd bs=24 count=1 <&3 > /dev/null 2>&1 && echo "button pressed" && sync && poweroff -f
	done
	echo "there is no button: $(ls /dev/input /sys/class/input)"
}
