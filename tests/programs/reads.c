/* Counts the bytes that a command reads: reads COMMAND ARGUMENT... runs it, and prints what it and the processes that it
 * starts have read by the time that each of them ended. Ends with the command, and with its exit status. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

static long long bytes_read(int pid)
{
	char path[64], line[256];
	long long number = 0;
	snprintf(path, sizeof path, "/proc/%d/io", pid);
	FILE *file = fopen(path, "r");
	if (!file)
		return 0;
	while (fgets(line, sizeof line, file) && sscanf(line, "rchar: %lld", &number) != 1)
		;
	fclose(file);
	return number;
}

int main(int argc, char **argv)
{
	long long total = 0;
	int status, pid;
	if (argc < 2)
		return 2;
	int command = fork();
	if (command == 0) {
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		raise(SIGSTOP);
		execvp(argv[1], argv + 1);
		_exit(127);
	}
	if (waitpid(command, &status, 0) != command || !WIFSTOPPED(status))
		return 1;
	long options = PTRACE_O_TRACEEXIT | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK;
	ptrace(PTRACE_SETOPTIONS, command, 0, options);
	ptrace(PTRACE_CONT, command, 0, 0);
	while ((pid = waitpid(-1, &status, __WALL)) > 0) {
		if (!WIFSTOPPED(status)) {
			if (pid != command)
				continue;
			printf("%lld\n", total);
			return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
		}
		int event = status >> 16, given = WSTOPSIG(status);
		if (event == PTRACE_EVENT_EXIT)
			total += bytes_read(pid);
		/* Those that only tell the tracer something are not the command's. */
		if (event || given == SIGTRAP || given == SIGSTOP)
			given = 0;
		ptrace(PTRACE_CONT, pid, 0, given);
	}
	return 1;
}
