# Mounts the container's image, writable, on /run/container/rootfs below $1. For first.sh, and for machines that were saved.
set -e
bb=${bb-/bin/busybox}
container=$1/run/container
# The first bytes of the disk may have been read before there was an image on it.
$bb blockdev --flushbufs /dev/vdc
# A file system in memory is the one that overlays of containers can lie on.
$bb mkdir -p "$container"
$bb mount -t tmpfs layers "$container"
cd "$container"
$bb mkdir lower upper work rootfs
$bb mount -t squashfs -o ro /dev/vdc lower
$bb mount -t overlay -o lowerdir=$container/lower,upperdir=$container/upper,workdir=$container/work overlay rootfs
