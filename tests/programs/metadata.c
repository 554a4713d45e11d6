/* Metadata calls of a build or an archiver: metadata DIRECTORY COUNT makes it and COUNT files in it, looks at each,
 * renames it and removes it. Prints how many files went through all of that in a second. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	int count = atoi(argv[2]);
	char path[4096], other[4096];
	struct timespec from, to;
	struct stat data;
	clock_gettime(CLOCK_MONOTONIC, &from);
	if (mkdir(argv[1], 0755))
		return perror("mkdir"), 1;
	for (int at = 0; at < count; at++) {
		snprintf(path, sizeof path, "%s/%d", argv[1], at);
		int fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0644);
		if (fd < 0 || write(fd, "x", 1) != 1 || close(fd))
			return perror(path), 1;
	}
	for (int at = 0; at < count; at++) {
		snprintf(path, sizeof path, "%s/%d", argv[1], at);
		snprintf(other, sizeof other, "%s/other-%d", argv[1], at);
		if (stat(path, &data) || rename(path, other))
			return perror(path), 1;
	}
	for (int at = 0; at < count; at++) {
		snprintf(other, sizeof other, "%s/other-%d", argv[1], at);
		if (unlink(other))
			return perror(other), 1;
	}
	if (rmdir(argv[1]))
		return perror("rmdir"), 1;
	clock_gettime(CLOCK_MONOTONIC, &to);
	printf("%.1f\n", count / ((to.tv_sec - from.tv_sec) + (to.tv_nsec - from.tv_nsec) / 1e9));
}
