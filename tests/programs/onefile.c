/* A FUSE program without a library: onefile SOURCE TARGET [-o OPTIONS] mounts a directory with a file called `file`,
 * whose content is SOURCE, and goes to the background. Options are ignored. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { DIRECTORY = FUSE_ROOT_ID, ONE_FILE };

static int device;
static const char *content;

static void reply(const struct fuse_in_header *request, int error, const void *data, size_t size)
{
	struct fuse_out_header header = { .len = sizeof header + size, .error = -error, .unique = request->unique };
	struct iovec parts[] = { { &header, sizeof header }, { (void *)data, size } };
	/* The kernel refuses the reply to an interrupted request. */
	if (writev(device, parts, 2) < 0 && errno != ENOENT)
		perror("writev");
}

static struct fuse_attr attributes(uint64_t node)
{
	if (node == DIRECTORY)
		return (struct fuse_attr){ .ino = node, .mode = S_IFDIR | 0555, .nlink = 2 };
	return (struct fuse_attr){ .ino = node, .mode = S_IFREG | 0444, .nlink = 1, .size = strlen(content) };
}

static void list(const struct fuse_in_header *request, const struct fuse_read_in *read)
{
	char entry[FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + 4)] = { 0 };
	struct fuse_dirent head = { .ino = ONE_FILE, .off = 1, .namelen = 4, .type = DT_REG };
	memcpy(entry, &head, FUSE_NAME_OFFSET);
	memcpy(entry + FUSE_NAME_OFFSET, "file", 4);
	reply(request, 0, entry, read->offset ? 0 : sizeof entry);
}

static void answer(const struct fuse_in_header *request, const void *argument)
{
	switch (request->opcode) {
	case FUSE_INIT: {
		struct fuse_init_out out = {
			.major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION, .max_write = 4096
		};
		return reply(request, 0, &out, sizeof out);
	}
	case FUSE_LOOKUP: {
		struct fuse_entry_out out = { .nodeid = ONE_FILE, .attr = attributes(ONE_FILE) };
		return strcmp(argument, "file") ? reply(request, ENOENT, NULL, 0) : reply(request, 0, &out, sizeof out);
	}
	case FUSE_GETATTR: {
		struct fuse_attr_out out = { .attr = attributes(request->nodeid) };
		return reply(request, 0, &out, sizeof out);
	}
	case FUSE_OPEN:
	case FUSE_OPENDIR: {
		struct fuse_open_out out = { 0 };
		return reply(request, 0, &out, sizeof out);
	}
	case FUSE_READ: {
		const struct fuse_read_in *read = argument;
		size_t size = strlen(content), from = read->offset < size ? read->offset : size;
		return reply(request, 0, content + from, read->size < size - from ? read->size : size - from);
	}
	case FUSE_READDIR:
		return list(request, argument);
	case FUSE_STATFS: {
		struct fuse_statfs_out out = { .st = { .bsize = 4096, .namelen = 255 } };
		return reply(request, 0, &out, sizeof out);
	}
	case FUSE_RELEASE:
	case FUSE_RELEASEDIR:
	case FUSE_DESTROY:
		return reply(request, 0, NULL, 0);
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		return;
	default:
		return reply(request, ENOSYS, NULL, 0);
	}
}

int main(int argc, char **argv)
{
	static _Alignas(struct fuse_in_header) char buffer[4 * FUSE_MIN_READ_BUFFER];
	char options[100];
	if (argc < 3)
		return 2;
	content = argv[1];
	device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (device < 0)
		return perror("/dev/fuse"), 1;
	snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0", device);
	if (mount(argv[1], argv[2], "fuse.onefile", MS_NOSUID | MS_NODEV, options))
		return perror("mount"), 1;
	if (daemon(0, 0))
		return perror("daemon"), 1;
	for (;;) {
		if (read(device, buffer, sizeof buffer) > 0)
			answer((const void *)buffer, buffer + sizeof(struct fuse_in_header));
		else if (errno != EINTR && errno != ENOENT)
			return errno != ENODEV; /* ENODEV: unmounted */
	}
}
