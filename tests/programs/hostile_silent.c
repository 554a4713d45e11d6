// A FUSE program that answers as if all were well until /tmp... of its own time is over: after 3 s
// it answers no STATFS, and ignores SIGTERM. A child of it has no environment.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static int dev;

static void reply(unsigned long unique, int error, const void *body, size_t length) {
  struct fuse_out_header head = {sizeof head + length, error, unique};
  struct iovec parts[2] = {{&head, sizeof head}, {(void *)body, length}};
  if (writev(dev, parts, length ? 2 : 1) < 0 && errno != ENOENT) perror("writev");
}

int main(int argc, char **argv) {
  signal(SIGTERM, SIG_IGN);
  if (argc == 2 && !strcmp(argv[1], "linger")) for (;;) pause();
  if (argc < 3) return 2;
  dev = open("/dev/fuse", O_RDWR);
  char options[100];
  snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", dev);
  if (mount(argv[1], argv[2], "fuse.s3fs", 0, options)) return 1;
  if (fork()) return 0;
  if (!fork()) {
    setsid();
    char *none[] = {NULL};
    char *words[] = {"lingering", "linger", NULL};
    execve("/proc/self/exe", words, none);
    return 1;
  }
  time_t end = time(NULL) + 3;
  static char buffer[1 << 20];
  for (;;) {
    ssize_t length = read(dev, buffer, sizeof buffer);
    // Stays when its mount is gone.
    if (length < 0 && errno == ENODEV) for (;;) pause();
    if (length < 0) continue;
    struct fuse_in_header *in = (void *)buffer;
    struct fuse_init_out init = {.major = 7, .minor = 31, .max_write = 4096};
    struct fuse_attr_out root = {.attr = {.ino = 1, .nlink = 2, .mode = S_IFDIR | 0755}};
    struct fuse_statfs_out size = {.st = {.blocks = -1, .bfree = -1, .bavail = -1, .bsize = -1, .frsize = -1, .files = -1, .ffree = -1}};
    switch (in->opcode) {
      case FUSE_INIT: reply(in->unique, 0, &init, sizeof init); break;
      case FUSE_GETATTR: reply(in->unique, 0, &root, sizeof root); break;
      case FUSE_STATFS: if (time(NULL) < end) reply(in->unique, 0, &size, sizeof size); break;
      case FUSE_FORGET: break;
      default: reply(in->unique, -ENOSYS, NULL, 0);
    }
  }
}
