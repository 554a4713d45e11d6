// A FUSE program that is called as s3fs is, PROGRAM SOURCE TARGET ..., and has an empty root directory.
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int dev;

// Attributes and size that it answers with.
static unsigned root_mode = S_IFDIR | 0755;
static struct fuse_statfs_out root_size;

// Mounts; returns whether that worked.
static int mounted(char **argv) {
  char options[100];
  dev = open("/dev/fuse", O_RDWR);
  snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", dev);
  return mount(argv[1], argv[2], "fuse.s3fs", 0, options) == 0;
}

// Waits for the next request; returns NULL when the file system is unmounted.
static struct fuse_in_header *next_request(void) {
  static char buffer[1 << 20];
  for (;;) {
    ssize_t length = read(dev, buffer, sizeof buffer);
    if (length >= 0) return (void *)buffer;
    if (errno == ENODEV) return NULL;
  }
}

static void reply(unsigned long unique, int error, const void *body, size_t length) {
  struct fuse_out_header head = {sizeof head + length, error, unique};
  struct iovec parts[2] = {{&head, sizeof head}, {(void *)body, length}};
  if (writev(dev, parts, length ? 2 : 1) < 0 && errno != ENOENT) perror("writev");
}

static void answer(const struct fuse_in_header *in) {
  struct fuse_init_out init = {.major = 7, .minor = 31, .max_write = 4096};
  struct fuse_attr_out root = {.attr = {.ino = 1, .nlink = 2, .mode = root_mode}};
  switch (in->opcode) {
    case FUSE_INIT: reply(in->unique, 0, &init, sizeof init); break;
    case FUSE_GETATTR: reply(in->unique, 0, &root, sizeof root); break;
    case FUSE_STATFS: reply(in->unique, 0, &root_size, sizeof root_size); break;
    case FUSE_FORGET: break;
    default: reply(in->unique, -ENOSYS, NULL, 0);
  }
}
