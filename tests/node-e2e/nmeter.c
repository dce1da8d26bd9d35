/* The program of that name as the images of the node suite have it in their busybox (Debian's has none),
 * as far as the suite uses it: `nmeter -d0 %3t | head -n1` prints the time of day with milliseconds. */
#include <stdio.h>
#include <time.h>

int main(void)
{
    struct timespec now;
    struct tm day;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &day);
    printf("%02d:%02d:%02d.%03ld\n", day.tm_hour, day.tm_min, day.tm_sec, now.tv_nsec / 1000000);
    return 0;
}
