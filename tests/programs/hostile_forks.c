// A FUSE program in the sandbox of a pod with 3000 processes.
#define _GNU_SOURCE
#include <signal.h>
#include <string.h>

#include "fuse_server.h"

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  if (!mounted(argv)) return 1;
  if (fork()) return 0;
  if (!fork()) {
    sleep(3);
    signal(SIGTERM, SIG_IGN);
    for (int i = 0; i < 3000; i++) if (!fork()) for (;;) pause();
    for (;;) pause();
  }
  for (struct fuse_in_header *in; (in = next_request());) answer(in);
  for (;;) pause();
}
