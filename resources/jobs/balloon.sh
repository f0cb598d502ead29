# What the guests of tests/tests/guest/balloon.rs do with their memory.

# Fills so many MiB, which may be more than the half of the memory that the root file system may have.
fill() {
	mkdir -p /filling
	mount -t tmpfs -o size=100% tmpfs /filling &&
		dd if=/dev/zero of=/filling/zeroes bs=1M count=$1 2>/dev/null
}

empty() {
	umount /filling
}

# Writes memory and frees it, without end.
churn() {
	while :; do
		dd if=/dev/zero of=/work bs=1M count=32 2>/dev/null
		rm /work
	done &
	worker=$!
}

# Figures of /proc/meminfo, in KiB.
meminfo() {
	while read -r name kib unit; do
		case $name in
		MemTotal: | MemFree: | MemAvailable: | Cached:) echo "$name $kib" ;;
		esac
	done < /proc/meminfo
}

# Takes so many MiB in a process of its own. Says what became of it, and how often the kernel killed somebody.
devour() {
	dd if=/dev/zero of=/dev/null bs=$1M count=1 2>/dev/null
	echo "dd $?"
	echo "killed $(dmesg | grep -c 'Out of memory')"
}
