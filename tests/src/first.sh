#!/bin/busybox sh
# The first program of a virtual machine: mounts a writable layer on the disk, sets name and address, and starts init.
export PATH=/bin
bb=/bin/busybox
fail() { echo "first: $*"; exec $bb poweroff -f; }
$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs dev /dev
for module in $($bb cat /modules/order); do $bb insmod "/modules/$module" || fail "cannot load $module"; done
option() { $bb sed "s/.*lab.$1=\([^ ]*\).*/\1/" "${root-}/proc/cmdline"; }

# Disks, in this order: the tree, the modules, the container's image or nothing.
if $bb grep -q lab.keeps=yes /proc/cmdline; then
    $bb mkdir -p /lib/modules
    $bb mount -t squashfs -o ro /dev/vdb /lib/modules || fail "no modules"
    # ext4 requests this module by its alias, and the kernel finds no modprobe yet.
    $bb modprobe crc32c_generic
    $bb modprobe ext4 || fail "no ext4"
    for disk in /sys/block/vd*; do [ "$($bb cat "$disk/serial")" = kept ] && kept=/dev/${disk##*/}; done
    $bb mount -t ext4 "$kept" /new || fail "nothing is kept"
    $bb umount /lib/modules
else
    $bb mount -t tmpfs -o mode=0755 upper /new || fail "no memory"
fi
$bb mkdir -p /new/lower
$bb mount -t squashfs -o ro /dev/vda /new/lower || fail "no tree"
# Where the tree has a policy of SELinux, files have labels from here on. systemd enforces it.
layers=/new label=
policy=/new/lower/etc/selinux/default/policy/policy.33
if [ -f $policy ]; then
    $bb mount -t selinuxfs selinuxfs /sys/fs/selinux || fail "no SELinux"
    $bb dd if=$policy of=/sys/fs/selinux/load bs=16M 2>/dev/null || fail "no policy"
    layers=/new/layers label=,rootcontext=system_u:object_r
    $bb mkdir $layers
    $bb mount -t tmpfs -o mode=0755$label:root_t:s0 layers $layers || fail "no labels"
fi
$bb mkdir -p $layers/upper $layers/work /new/root
$bb mount -t overlay -o lowerdir=/new/lower,upperdir=$layers/upper,workdir=$layers/work overlay /new/root || fail "no root"
root=/new/root
$bb mkdir -p $root/lib/modules $root/dev $root/proc $root/sys $root/run $root/tmp
$bb mount -t squashfs -o ro${label:+,context=system_u:object_r:modules_object_t:s0} /dev/vdb $root/lib/modules || fail "no modules"
$bb mount -t tmpfs -o mode=0755 run $root/run
$bb mount -t tmpfs -o mode=1777${label:+$label:tmp_t:s0} tmp $root/tmp
$bb mkdir -p $root/run/lab
$bb cp /bin/busybox $root/run/lab/busybox
$bb ln -s busybox $root/run/lab/init
$bb cp /bin/lab $root/run/lab/lab
$bb cp /bin/image $root/run/lab/image
if $bb grep -q lab.image=yes /proc/cmdline; then $bb sh /bin/image $root || fail "no image"; fi

# Devices that kmod or udev make beforehand, so that opening them loads the module.
$bb mknod /dev/fuse c 10 229 2>/dev/null
$bb mknod /dev/loop-control c 10 237 2>/dev/null
$bb mkdir -p /dev/pts /dev/shm
$bb ln -s /proc/self/fd /dev/fd
$bb mount -t devpts -o mode=0620,ptmxmode=0666 devpts /dev/pts
$bb mount -t tmpfs -o mode=1777 shm /dev/shm
$bb mount -t cgroup2 cgroup /sys/fs/cgroup
for place in dev proc sys; do $bb mount --move /$place $root/$place; done

$bb ip link set lo up
# A machine that will be saved gets name and address when it is woken.
if $bb grep -q lab.name= $root/proc/cmdline; then
    name=$(option name) address=$(option address)
    $bb hostname "$name"
    echo "$name" >$root/etc/hostname
    printf '127.0.0.1 localhost\n%s %s\n' "$address" "$name" >$root/etc/hosts
    $bb ip address add "$address/24" dev eth0
    $bb ip link set eth0 up
fi

if [ -d $root/lib/systemd/system ] && [ -x $root/sbin/init ]; then
    init=/sbin/init
    $bb mkdir -p $root/run/systemd/system/sysinit.target.wants
    printf '[Unit]\nDescription=The lab\nDefaultDependencies=no\n[Service]\nExecStart=/run/lab/lab guest\nKillMode=process\n' \
        >$root/run/systemd/system/lab.service
    $bb ln -s ../lab.service $root/run/systemd/system/sysinit.target.wants/lab.service
else
    init=/run/lab/init
    # Mounts propagate, as systemd leaves it.
    printf '::sysinit:/run/lab/busybox mount --make-rshared /\n::respawn:/run/lab/lab guest\n' >$root/etc/inittab
fi
exec $bb switch_root $root $init
