# What the guests of tests/tests/guest/serial.rs do with the ports of a serial bus.

# The name that the kernel gave the port with this name.
port() {
	for folder in /sys/class/virtio-ports/*; do
		name=
		read -r name 2>/dev/null < $folder/name
		[ "$name" = "$1" ] && echo ${folder##*/}
	done
}

# Waits until somebody is at the far end of a port; before that, nothing can be read there. Says the file of the port.
connected() {
	until [ -n "$(port $1)" ]; do usleep 20000; done
	file=$(port $1)
	until grep -q 'host_connected: 1' /sys/kernel/debug/virtio-ports/$file; do usleep 20000; done
	echo /dev/$file
}

# Sends back what comes on each of the ports, until the host hangs up. A port can be opened once at a time.
echo_ports() {
	for name; do cat <> $(connected $name) >&0 & done
}

# Takes so many MiB from a port, and rests for a while after the first.
receive() {
	{
		dd bs=1M count=1 iflag=fullblock 2>/dev/null
		echo resting >&2
		sleep 3
		dd bs=1M count=$(($2 - 1)) iflag=fullblock 2>/dev/null
	} < $(connected $1) > /received
	md5sum < /received
}

# Sends that back, in the background.
send() {
	dd if=/received of=$(connected $1) bs=1M 2>/dev/null &
	sender=$!
}

# Has a port open, reads it and writes to it.
occupy() {
	exec 4<> $(connected $1)
	cat <&4 > /dev/null 2>&1 &
	yes >&4 2>/dev/null &
	exec 4>&-
}

# Waits until a port is gone, and whoever used it.
gone() {
	wait
	while [ -n "$(port $1)" ]; do usleep 20000; done
	ls -1 /sys/class/virtio-ports
}

# Somebody can log in on hvc0, once.
job_login() {
	mkdir -p /etc
	echo root::0:0:root:/:/bin/sh > /etc/passwd
	getty 0 hvc0 vt100
}
