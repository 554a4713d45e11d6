/* Mounts between unshare(CLONE_NEWPID) and the first fork: newpid TYPE TARGET. A child made in between would be the
 * first process of the new PID namespace, and with its end the namespace would be dead. Prints the mount's result and
 * whether a fork still works. */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	if (argc != 3 || unshare(CLONE_NEWPID) != 0)
		return 2;
	int result = mount("newpid", argv[2], argv[1], 0, NULL);
	printf("mount %d %d\n", result, result ? errno : 0);
	fflush(stdout);
	pid_t pid = fork();
	if (pid == 0)
		_exit(getpid() == 1 ? 0 : 1);
	int status = -1;
	if (pid > 0)
		waitpid(pid, &status, 0);
	printf("fork %s\n", pid > 0 && status == 0 ? "works" : "fails");
	return pid < 0;
}
