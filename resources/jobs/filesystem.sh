# What the guests of tests/tests/guest/filesystem.rs do with /dev/vda.

# 50 files of 4 MiB and a bit; each starts with a number of its own length, so no block of one is like a block of another.
files="$(seq 50)"
contents() { printf "%0$(($1 * 16))d" $1; cat /pattern; }

compare() {
	for n in $files; do
		contents $n | cmp - /mnt/$n || return
		[ $((n % 10)) != 0 ] || echo "$1 $n"
	done
	echo "$1 same"
}

check() {
	umount /mnt
	e2fsck -fn /dev/vda > /e2fsck.txt 2>&1
	echo "e2fsck $?"
	tail -n 1 /e2fsck.txt
}

# A new file system, filled, and read back after it was mounted again. Its size leaves the last 8 MiB of the disk to the pattern.
job_fill() {
	dd if=/dev/urandom of=/pattern bs=1M count=4 2>/dev/null
	dd if=/pattern of=/dev/vda bs=1M seek=508 conv=fsync 2>/dev/null
	mkdir /mnt
	# By its path: the shell prefers its own. All at once, so that nothing is still being written when the space is measured.
	/bin/mke2fs -q -t ext4 -E lazy_itable_init=0,lazy_journal_init=0 /dev/vda 504M; echo "mke2fs $?"
	mount -t ext4 /dev/vda /mnt && echo mounted
	for n in $files; do
		contents $n > /mnt/$n || echo "writing $n failed"
		[ $((n % 10)) != 0 ] || echo "written $n"
	done
	umount /mnt
	echo 3 > /proc/sys/vm/drop_caches
	mount -t ext4 /dev/vda /mnt && echo "mounted again"
	compare remounted
	check
}

# The next boot: everything is there; then it is deleted and the space given back.
job_trim() {
	mkdir /mnt
	dd if=/dev/vda of=/pattern bs=1M skip=508 count=4 2>/dev/null
	mount -t ext4 /dev/vda /mnt && echo mounted
	compare rebooted
	rm /mnt/[0-9]*
	sync
	fstrim -v /mnt; echo "fstrim $?"
	check
}

job_readonly() {
	echo "sysfs $(cat /sys/block/vda/ro)"
	echo "blockdev $(blockdev --getro /dev/vda)"
	md5sum < /dev/vda
	dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync 2>/dev/null; echo "dd $?"
	blockdev --setrw /dev/vda 2>/dev/null
	dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync 2>/dev/null; echo "dd after setrw $?"
}

# Waits until the disk, new or just found, is being written. A dd that starts only when its disk is gone would make a file of its name.
await_writes() {
	writes=0
	until [ $writes -gt 0 ]; do read reads merged sectors time writes rest < /sys/block/vda/stat; done
}

job_unbind() {
	cd /sys/bus/virtio/drivers/virtio_blk
	device=$(ls -d virtio*)
	dd if=/dev/urandom of=/pattern bs=1M count=1 2>/dev/null
	for n in $(seq 100); do
		dd if=/dev/vda of=/dev/null bs=64k 2>/dev/null &
		dd if=/dev/zero of=/dev/vda bs=64k seek=64 oflag=direct 2>/dev/null &
		await_writes
		echo $device > unbind || echo "unbind $n failed"
		wait
		[ ! -e /sys/block/vda ] || echo "vda is there after unbind $n"
		echo $device > bind || echo "bind $n failed"
		[ -b /dev/vda ] || echo "no vda after bind $n"
		[ $((n % 10)) != 0 ] || echo "bound $n"
	done
	cd /
	dd if=/pattern of=/dev/vda bs=64k conv=fsync 2>/dev/null
	echo 3 > /proc/sys/vm/drop_caches
	dd if=/dev/vda bs=64k count=16 2>/dev/null | cmp - /pattern && echo same
}

# Resets the machine while the disk is busy, once: what the first boot wrote tells the second.
job_reboot() {
	if [ "$(head -c 6 /dev/vda)" = marker ]; then
		echo "second boot"
		dd if=/dev/vda of=/dev/null bs=64k count=256 2>/dev/null; echo "dd $?"
		return
	fi
	echo marker | dd of=/dev/vda conv=fsync 2>/dev/null
	for n in 1 2 3 4; do
		dd if=/dev/zero of=/dev/vda bs=64k seek=$((n * 1024)) oflag=direct 2>/dev/null &
	done
	dd if=/dev/zero of=/dev/vda bs=64k seek=16 count=256 2>/dev/null &
	dd if=/dev/vda of=/dev/null bs=64k 2>/dev/null &
	usleep 500000
	echo "in flight $(cat /sys/block/vda/inflight)"
	echo "resetting under load"
	reboot -f
}

# Announces each MiB when it is on the disk, while other writes are on their way. It is stopped from outside.
job_fsync() {
	dd if=/dev/zero of=/dev/vda bs=64k seek=4096 2>/dev/null &
	for n in $(seq 0 255); do
		yes "block $n" | dd of=/dev/vda bs=64k iflag=fullblock seek=$((n * 16)) count=16 conv=fsync 2>/dev/null && echo "synced $n"
	done
}

# Reads a disk made elsewhere, writes 4 MiB into its middle, and gives the MiB after those back.
job_qcow2() {
	md5sum < /dev/vda
	yes "block 7" | dd of=/dev/vda bs=64k iflag=fullblock seek=16 count=64 conv=fsync 2>/dev/null; echo "dd $?"
	blkdiscard -o 5242880 -l 1048576 /dev/vda; echo "blkdiscard $?"
	echo 3 > /proc/sys/vm/drop_caches
	dd if=/dev/vda bs=64k skip=16 count=64 2>/dev/null | md5sum
}

job_lspci() {
	lspci -vvv -nn -xxx -s 00:02.0 2>/dev/null
}
