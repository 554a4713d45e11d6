/* Mounts from many threads at once: threads COUNT TYPE TARGET... with a target for each thread. Prints how many mounts
 * succeeded, how often a signal handler ran while it rained signals, and whether the handler ever ran elsewhere than in
 * this process. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

static atomic_int good, handled, elsewhere, stop;
static pid_t self;
static char *type;

static void handler(int signal)
{
	(void)signal;
	handled++;
	if (syscall(SYS_getpid) != self)
		elsewhere++;
}

static void *mounter(void *target)
{
	if (mount("threads", target, type, 0, NULL) == 0)
		good++;
	else
		fprintf(stderr, "threads: %s: %s\n", (char *)target, strerror(errno));
	return NULL;
}

static void *rain(void *unused)
{
	while (!stop) {
		kill(self, SIGUSR1);
		usleep(100);
	}
	return unused;
}

int main(int argc, char **argv)
{
	if (argc < 3)
		return 2;
	self = getpid();
	type = argv[1];
	struct sigaction action = { .sa_handler = handler, .sa_flags = SA_RESTART };
	sigaction(SIGUSR1, &action, NULL);
	int count = argc - 2;
	pthread_t rainer, threads[count];
	pthread_create(&rainer, NULL, rain, NULL);
	for (int at = 0; at < count; at++)
		pthread_create(&threads[at], NULL, mounter, argv[2 + at]);
	for (int at = 0; at < count; at++)
		pthread_join(threads[at], NULL);
	/* On a busy machine the rain may begin late. */
	while (!handled)
		usleep(100);
	stop = 1;
	pthread_join(rainer, NULL);
	printf("mounted %d\nelsewhere %d\n%s\n", good, elsewhere, handled ? "handled" : "not handled");
	return good == count && !elsewhere ? 0 : 1;
}
