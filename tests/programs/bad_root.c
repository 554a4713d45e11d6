// A FUSE program whose root directory becomes a regular file after 2 s.
//
// bad_root SOURCE TARGET ...
#include <string.h>
#include <time.h>

#include "fuse_server.h"

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  if (!mounted(argv)) return 1;
  if (fork()) return 0;
  time_t end = time(NULL) + 2;
  for (struct fuse_in_header *in; (in = next_request());) {
    if (time(NULL) >= end) root_mode = S_IFREG | 0644;
    answer(in);
  }
}
