# Mounts the container's image, writable, on /run/container/rootfs below $1. For first.sh, and for machines that were saved.
set -e
bb=${bb-/bin/busybox}
container=$1/run/container
# Labels as of an engine: of its own files, of an image, of a container.
own= image= label=
if [ -e /sys/fs/selinux/enforce ]; then
    object=system_u:object_r
    own=,rootcontext=$object:container_var_lib_t:s0
    image=,context=$object:container_ro_file_t:s0
    label=,context=$object:container_file_t:s0
fi
# The first bytes of the disk may have been read before there was an image on it.
$bb blockdev --flushbufs /dev/vdc
# A file system in memory is the one that overlays of containers can lie on.
$bb mkdir -p "$container"
$bb mount -t tmpfs -o "mode=0755$own" layers "$container"
cd "$container"
$bb mkdir lower upper work rootfs
$bb mount -t squashfs -o ro$image /dev/vdc lower
$bb mount -t overlay -o lowerdir=$container/lower,upperdir=$container/upper,workdir=$container/work$label overlay rootfs
