/* Counts what one call costs: counts mount SOURCE TARGET TYPE FLAGS | counts syscall. Prints the number of system calls of a
 * mount(2), or the number of instructions of a syscall(SYS_getppid). */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Around the call that counts. */
#define MARK() __asm__ volatile("int3" ::: "memory")

static void call(char **argv)
{
	if (argv[2])
		mount(argv[2], argv[3], argv[4], strtoul(argv[5], NULL, 0), "");
	else
		syscall(SYS_getppid);
}

int main(int argc, char **argv)
{
	if (argc != 2 && argc != 6)
		return 2;
	pid_t child = fork();
	if (child == 0) {
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		/* What is done once per process. */
		call(argv);
		call(argv);
		MARK();
		call(argv);
		MARK();
		_exit(0);
	}
	int status, marks = 0, count = 0, by = argv[2] ? PTRACE_SYSCALL : PTRACE_SINGLESTEP, step = PTRACE_CONT;
	while (waitpid(child, &status, 0) == child && WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP) {
		siginfo_t about = { 0 };
		ptrace(PTRACE_GETSIGINFO, child, NULL, &about);
		/* The kernel's own stops have other codes. */
		if (about.si_code == SI_KERNEL) {
			step = by;
			if (++marks == 2) {
				/* A system call stops at its begin and at its end. */
				printf("%d\n", by == PTRACE_SYSCALL ? count / 2 : count);
				kill(child, SIGKILL);
				return 0;
			}
		} else {
			count++;
		}
		if (ptrace(step, child, NULL, NULL) < 0)
			break;
	}
	return perror("counts"), 1;
}
