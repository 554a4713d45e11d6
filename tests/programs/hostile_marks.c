// A FUSE program in the sandbox of a pod with 3000 processes, each with a mark of its own in its environment; with LONG,
// all with a long one.
#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "fuse_server.h"

extern char **environ;

#ifdef LONG
static char mark[127 * 1024] = "SPC_MOUNT=";
#endif

static void fork_all(void) {
  signal(SIGTERM, SIG_IGN);
  for (int i = 0; i < 3000; i++) {
    if (fork()) continue;
#ifndef LONG
    for (char **variable = environ; *variable; variable++)
      if (!strncmp(*variable, "SPC_MOUNT=", 10)) snprintf(*variable + 10, 17, "%016x", i);
#endif
    for (;;) pause();
  }
  for (;;) pause();
}

int main(int argc, char **argv) {
  if (argc == 2) fork_all();
  if (argc < 3) return 2;
  if (!mounted(argv)) return 1;
  if (fork()) return 0;
  if (!fork()) {
    sleep(3);
#ifdef LONG
    memset(mark + 10, 'x', sizeof mark - 11);
    execle("/usr/bin/s3fs", "s3fs", "marks", NULL, (char *[]){mark, NULL});
#endif
    fork_all();
  }
  for (struct fuse_in_header *in; (in = next_request());) answer(in);
  for (;;) pause();
}
