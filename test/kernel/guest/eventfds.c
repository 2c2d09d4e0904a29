/*
 * eventfds COUNT PROGRAM [ARGUMENT]...: becomes the program, with so many eventfds that do not block open; $EVENTFDS has their numbers. Node can't
 * make any.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  char numbers[256] = "";
  for (int left = atoi(argv[1]); left > 0; left--) {
    int fd = eventfd(0, EFD_NONBLOCK);
    size_t used = strlen(numbers);
    if (fd < 0) return perror("eventfd"), 1;
    if (used + 16 > sizeof(numbers)) return 2;
    snprintf(numbers + used, sizeof(numbers) - used, "%s%d", used == 0 ? "" : " ", fd);
  }
  setenv("EVENTFDS", numbers, 1);
  execv(argv[2], argv + 2);
  return perror(argv[2]), 1;
}
