// A FUSE program that answers no STATFS after 3 s, and ignores SIGTERM. A child of it has no
// environment.
#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#include "fuse_server.h"

int main(int argc, char **argv) {
  signal(SIGTERM, SIG_IGN);
  if (argc == 2 && !strcmp(argv[1], "linger")) for (;;) pause();
  if (argc < 3) return 2;
  if (!mounted(argv)) return 1;
  if (fork()) return 0;
  if (!fork()) {
    setsid();
    char *none[] = {NULL};
    char *words[] = {"lingering", "linger", NULL};
    execve("/proc/self/exe", words, none);
    return 1;
  }
  time_t end = time(NULL) + 3;
  struct fuse_kstatfs all = {.blocks = -1, .bfree = -1, .bavail = -1, .files = -1, .ffree = -1, .bsize = -1, .frsize = -1};
  root_size.st = all;
  for (struct fuse_in_header *in; (in = next_request());)
    if (in->opcode != FUSE_STATFS || time(NULL) < end) answer(in);
  // Stays when its mount is gone.
  for (;;) pause();
}
