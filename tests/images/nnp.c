/* The program of the image nonewprivs: owned by root, with the set-user-ID bit. What it prints tells
 * whether execve(2) has honoured that bit. */
#include <stdio.h>
#include <unistd.h>

int main(void)
{
    printf("Effective uid: %d\n", (int)geteuid());
    return 0;
}
