// A FUSE program that answers everything, and has a child.
#include "fuse_server.h"

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  if (!mounted(argv)) return 1;
  if (fork()) return 0;
  for (struct fuse_in_header *in; (in = next_request());) answer(in);
  return 0;
}
