/* A fork storm: storm COUNT TYPE DIRECTORY forks COUNT children while another thread mounts and unmounts on
 * DIRECTORY; each child mounts on DIRECTORY/N itself. Prints how many of both failed. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char *type, path[4096];
static volatile int stop;
static int own_failures;

static void *mounter(void *directory)
{
	char own[4096];
	snprintf(own, sizeof own, "%s/own", (char *)directory);
	while (!stop)
		own_failures += mount("storm", own, type, 0, NULL) != 0 || umount(own) != 0;
	return NULL;
}

int main(int argc, char **argv)
{
	if (argc != 4)
		return 2;
	int count = atoi(argv[1]), failures = 0;
	type = argv[2];
	pthread_t thread;
	pthread_create(&thread, NULL, mounter, argv[3]);
	for (int at = 0; at < count; at++) {
		if (fork() == 0) {
			snprintf(path, sizeof path, "%s/%d", argv[3], at);
			_exit(mount("storm", path, type, 0, NULL) ? 1 : 0);
		}
	}
	for (int at = 0, status; at < count; at++)
		failures += wait(&status) < 0 || status != 0;
	stop = 1;
	pthread_join(thread, NULL);
	printf("children %d failures %d own failures %d\n", count, failures, own_failures);
	return failures || own_failures;
}
