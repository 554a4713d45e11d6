// A helper that its server has taken over, in the sandbox of a pod: tries to reach the node. Prints
// what succeeded, or "nothing", and exits with 1.
#define _GNU_SOURCE
#include <fcntl.h>
#include <ftw.h>
#include <linux/aio_abi.h>
#include <linux/netlink.h>
#include <mqueue.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

static int reached;

static void report(const char *what) {
  fprintf(stderr, "reached: %s\n", what);
  reached = 1;
}

#define TRY(call) \
  if ((call) >= 0) report(#call)

static int as_root(const char *path) {
  if (chmod(path, 04755) >= 0) return 0;
  int fd = open(path, O_RDONLY);
  if (fchmod(fd, 04755) >= 0) return 0;
  if (syscall(SYS_fchmodat, AT_FDCWD, path, 02755) >= 0) return 0;
  if (syscall(452, AT_FDCWD, path, 06755, 0) >= 0) return 0;  // fchmodat2(2)
  return -1;
}

// Pods of the node share 3072 terminals.
static int many_terminals(void) {
  for (int i = 0; i < 64; i++)
    if (posix_openpt(O_RDWR | O_NOCTTY) < 0) return -1;
  return 0;
}

static int each(const char *path, const struct stat *file, int kind, struct FTW *place) {
  (void)kind, (void)place;
  if (S_ISREG(file->st_mode)) {
    TRY(as_root(path));
  }
  return 0;
}

static int present(const char *path, const struct stat *file, int kind, struct FTW *place) {
  (void)kind, (void)place;
  if (!S_ISDIR(file->st_mode)) report(path);
  return 0;
}

int main(void) {
  int pair[2];
  // The program of the first process is the node's spc.
  TRY(chmod("/proc/1/exe", 0));
  TRY(setxattr("/proc/1/exe", "user.x", "x", 1, 0));
  TRY(utimensat(AT_FDCWD, "/proc/1/exe", NULL, 0));
  TRY(truncate("/proc/1/exe", 0));
  TRY(open("/proc/1/exe", O_WRONLY));
  TRY(open("/proc/1/exe", O_RDONLY));
  TRY(open("/proc/1/mem", O_RDONLY));
  TRY(open("/proc/1/environ", O_RDONLY));
  TRY(open("/proc/1/root/etc/shadow", O_RDONLY));
  TRY(open("/proc/1/fd/0", O_RDONLY));
  nftw("/var/log", each, 8, FTW_PHYS);
  // Where services of the client root note passwords.
  nftw("/var/lib", present, 8, FTW_PHYS);
  // For abstract sockets of the node, whose services take the user ID 0 for the administrator.
  TRY(socket(AF_UNIX, SOCK_STREAM, 0));
  TRY(socket(AF_UNIX, SOCK_DGRAM, 0));
  TRY(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
  TRY(socketpair(AF_UNIX, SOCK_RAW | SOCK_CLOEXEC, 0, pair));
  TRY(listen(socket(AF_INET, SOCK_STREAM, 0), 1));
  TRY(socket(AF_VSOCK, SOCK_STREAM, 0));
  TRY(socket(AF_PACKET, SOCK_RAW, 0));
  struct file_handle handle = {.handle_bytes = 0};
  TRY(open_by_handle_at(AT_FDCWD, &handle, O_RDONLY));
  // The modes of the node's devices, without a change.
  TRY(chmod("/dev/null", 0666));
  TRY(utimensat(AT_FDCWD, "/dev/zero", NULL, 0));
  // What root has few of, and what others would wait for.
  TRY(inotify_init1(0));
  TRY(syscall(SYS_fanotify_init, FAN_CLASS_NOTIF | FAN_REPORT_FID, O_RDONLY));
  aio_context_t context = 0;
  TRY(syscall(SYS_io_setup, 1, &context));
  TRY(fcntl(open("/usr/bin/ssh", O_RDONLY), F_SETLEASE, F_WRLCK));
  TRY(mq_open("/queue", O_CREAT | O_RDWR, 0600, NULL));
  TRY(many_terminals());
  // F_SETDELEG of Linux 6.19, which is a lease as well.
  struct { unsigned flags; unsigned short type, pad; } delegation = {.type = F_WRLCK};
  TRY(fcntl(open("/usr/bin/ssh", O_RDONLY), 1040, &delegation));
  // Messages of the node's kernel, and to its programs.
  TRY(syscall(SYS_syslog, 10, NULL, 0));
  TRY(socket(AF_NETLINK, SOCK_RAW, NETLINK_USERSOCK));
  TRY(socket(AF_NETLINK, SOCK_RAW, NETLINK_KOBJECT_UEVENT));
  TRY(socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER));
  // A port that a service of the node has.
  int udp = socket(AF_INET, SOCK_DGRAM, 0), one = 1;
  TRY(setsockopt(udp, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one));
  TRY(setsockopt(udp, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one));
  TRY(mknod("/tmp/disk", S_IFBLK | 0600, makedev(8, 0)));
  TRY(syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0));
  TRY(syscall(SYS_clone3, NULL, 0));
  TRY(mount("/proc", "/tmp", "proc", 0, NULL));
  TRY(mount("/", "/tmp", NULL, MS_BIND, NULL));
  TRY(setuid(1000));
  if (!reached) fprintf(stderr, "reached: nothing\n");
  return 1;
}
