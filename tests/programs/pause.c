/* First process of a pod: ends at SIGTERM, and collects the pod's ended processes. */
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static void collect(int signal)
{
    (void)signal;
    while (waitpid(-1, NULL, WNOHANG) > 0)
        ;
}

static void end(int signal)
{
    (void)signal;
    _exit(0);
}

int main(void)
{
    signal(SIGCHLD, collect);
    signal(SIGTERM, end);
    signal(SIGINT, end);
    for (;;)
        pause();
}
