// A FUSE program in the sandbox of a pod whose other processes share an address space that is nearly always locked: whoever
// reads their environments waits.
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "fuse_server.h"

#define PART (64UL << 20)
#define PARTS 384
#define WRITERS 12
#define PROCESSES 40

static char *base;

static void *change(void *unused) {
  for (;;) {
    mprotect(base, PART * PARTS, PROT_READ);
    mprotect(base, PART * PARTS, PROT_NONE);
  }
  return unused;
}

static int wait_forever(void *unused) {
  for (;;) pause();
  return unused != NULL;
}

static void lock(void) {
  int file = memfd_create("x", 0);
  if (ftruncate(file, PART)) return;
  base = mmap(NULL, PART * PARTS, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  for (int i = 0; i < PARTS; i++)
    mmap(base + i * PART, PART, PROT_READ, MAP_SHARED | MAP_FIXED | MAP_POPULATE, file, 0);
  for (int i = 0; i < PROCESSES; i++) clone(wait_forever, (char *)malloc(65536) + 65536, CLONE_VM | SIGCHLD, NULL);
  for (int i = 0; i < WRITERS; i++) {
    pthread_t thread;
    pthread_create(&thread, NULL, change, NULL);
  }
  for (;;) pause();
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  if (!mounted(argv)) return 1;
  if (fork()) return 0;
  if (!fork()) {
    sleep(3);
    lock();
  }
  for (struct fuse_in_header *in; (in = next_request());) answer(in);
  for (;;) pause();
}
