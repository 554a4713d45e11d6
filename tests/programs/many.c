/* Many mounts: many COUNT DIRECTORY mounts a tmpfs on each of DIRECTORY/0, DIRECTORY/1, ... */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	int count = atoi(argv[1]);
	char path[4096];
	mkdir(argv[2], 0755);
	for (int at = 0; at < count; at++) {
		snprintf(path, sizeof path, "%s/%d", argv[2], at);
		if (mkdir(path, 0755) || mount("many", path, "tmpfs", 0, "size=4k")) {
			perror(path);
			return 1;
		}
	}
	return 0;
}
