/* The first program of the CD's system: says that it runs, with the kernel's command line, and powers off. */

#include <fcntl.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

int main(void)
{
    char line[2048];
    ssize_t length = 0;

    mkdir("/proc", 0755);
    if (mount("proc", "/proc", "proc", 0, NULL) == 0) {
        int file = open("/proc/cmdline", O_RDONLY);
        if (file >= 0)
            length = read(file, line, sizeof line);
    }
    printf("pyvm: init of the CD, command line %.*s\n", length > 0 ? (int)length : 0, line);
    fflush(stdout);
    /* What was written must have left the serial port before the power does. */
    tcdrain(STDOUT_FILENO);
    reboot(RB_POWER_OFF);
    return 1;
}
