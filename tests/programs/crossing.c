/* Cost of a redirected call: crossing NAMESPACE TARGET RUNS MIB THREADS mounts a tmpfs three ways in turn, in a caller with
 * so much memory and so many threads besides, and prints for each way the microseconds that each run took:
 *   in-place   mount(2) in the caller's own namespace, by a system call of its own
 *   bare       a CLONE_VM | CLONE_VFORK child that does setns(2) and mount(2)
 *   shim       mount() of the C library, which the preloaded shim redirects to the namespace */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *host, *target;
static long result;

/* Past the shim, which defines syscall(). */
static long raw(long number, long a, long b, long c, long d, long e)
{
#ifdef __x86_64__
	long answer;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	__asm__ volatile("syscall" : "=a"(answer) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
	return answer;
#else
#error "only x86_64 so far"
#endif
}

static int in_place(void *unmount)
{
	result = unmount ? raw(SYS_umount2, (long)target, 0, 0, 0, 0)
			 : raw(SYS_mount, (long)"x", (long)target, (long)"tmpfs", 0, 0);
	return 0;
}

static int on_host(void *unmount)
{
	int fd = open(host, O_RDONLY | O_CLOEXEC);
	if (setns(fd, CLONE_NEWNS))
		return result = -1;
	return in_place(unmount);
}

static void in_child(char *stack, void *unmount)
{
	sigset_t all, old;
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &old);
	result = -1;
	int pid = clone(on_host, stack, CLONE_VM | CLONE_VFORK | SIGCHLD, unmount);
	waitpid(pid, NULL, 0);
	sigprocmask(SIG_SETMASK, &old, NULL);
}

static void *idle(void *unused)
{
	for (;;)
		pause();
	return unused;
}

int main(int argc, char **argv)
{
	if (argc != 6)
		return 2;
	host = argv[1];
	target = argv[2];
	int runs = atoi(argv[3]);
	size_t bytes = strtoul(argv[4], NULL, 10) << 20;
	if (bytes && mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0) == MAP_FAILED)
		return perror("mmap"), 1;
	for (int threads = atoi(argv[5]); threads > 1; threads--) {
		pthread_t thread;
		if (pthread_create(&thread, NULL, idle, NULL))
			return perror("pthread_create"), 1;
	}
	/* Whether a child comes to run on another processor is chance, which doubles the time of one caller and not of the next. */
	cpu_set_t one;
	CPU_ZERO(&one);
	CPU_SET(sched_getcpu(), &one);
	if (sched_setaffinity(0, sizeof one, &one))
		return perror("sched_setaffinity"), 1;
	char *stack = (char *)mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) + 65536;
	const char *names[] = { "in-place", "bare", "shim" };
	double *times[3];
	for (int way = 0; way < 3; way++)
		times[way] = malloc(runs * sizeof(double));
	for (int run = 0; run < runs; run++) {
		for (int way = 0; way < 3; way++) {
			struct timespec from, to;
			clock_gettime(CLOCK_MONOTONIC, &from);
			if (way == 0)
				in_place(NULL);
			else if (way == 1)
				in_child(stack, NULL);
			else
				result = mount("x", target, "tmpfs", 0, NULL);
			clock_gettime(CLOCK_MONOTONIC, &to);
			times[way][run] = (to.tv_sec - from.tv_sec) * 1e6 + (to.tv_nsec - from.tv_nsec) / 1e3;
			if (result)
				return fprintf(stderr, "crossing: %s: mount: %ld\n", names[way], result), 1;
			/* What was mounted where it should not be is not there to be unmounted. */
			way ? in_child(stack, "") : in_place("");
			if (result)
				return fprintf(stderr, "crossing: %s: umount: %ld\n", names[way], result), 1;
		}
	}
	for (int way = 0; way < 3; way++) {
		printf("%s", names[way]);
		for (int run = 0; run < runs; run++)
			printf(" %.1f", times[way][run]);
		printf("\n");
	}
}
