/**
 * The first process of the Linux guest: a shell script for busybox. What it does after mounting is named on the kernel command
 * line as `mkvm.run=NAME`:
 *   check     the workload that checks itself, until "stop" comes over the console; then a report and power-off
 *   shell     an interactive shell on the console, power-off when it ends
 *   bench     the timed workloads (see benchScript), then power-off
 *   poweroff  says that user space was reached and powers off (the default)
 */
export const init = `#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
echo "mkvm-guest: user space reached, Linux $(uname -r)"
run=poweroff
for word in $(cat /proc/cmdline); do
  case "$word" in mkvm.run=*) run="\${word#mkvm.run=}" ;; esac
done
case "$run" in
check) . /check.sh ;;
bench) . /bench.sh ;;
shell) setsid cttyhack sh ;;
poweroff) ;;
*) echo "mkvm-guest: no workload called $run" ;;
esac
sync
poweroff -f
`;

/**
 * The workload. Commands come over the console, a line each, at most one of them is taken in a round: "mark" forgets the kernel log
 * so far, "stop" ends. Each round: a counter, a running checksum of all rounds, a line appended to a file in memory whose MD5 is
 * taken every eighth round, time and timer interrupts as the guest counts them, and a wait for the timer. The same rules stand in
 * check-workload.ts, which predicts every line.
 *
 * The wait is for a FIFO that nobody writes to, not for the console: busybox's `read -t` looks at its time limit before each
 * character and forgets those it has read when the limit falls between two of them (shell_builtin_read in shell/shell_common.c),
 * which lost one command in some hundreds. The console gives whole lines; `read -t 0` says whether there is one and takes nothing.
 */
export const checkScript = `
stty -echo 2>/dev/null
mkfifo /tmp/never
exec 3<> /tmp/never
dmesg -c > /dev/null
: > /tmp/rounds
n=0
sum=7
command=
while [ "$command" != stop ]; do
  n=$((n + 1))
  sum=$(((sum * 31 + n) % 1000000007))
  echo "$n $sum" >> /tmp/rounds
  digest=-
  if [ $((n % 8)) = 0 ]; then
    digest=$(md5sum < /tmp/rounds)
    digest=\${digest%% *}
  fi
  read -r up rest < /proc/uptime
  while read -r label count rest; do
    [ "$label" = LOC: ] && break
  done < /proc/interrupts
  echo "mkvm-check n=$n sum=$sum up=$up ticks=$count md5=$digest"
  read -t 0.1 -u 3
  command=
  read -t 0 && read -r command
  [ "$command" = mark ] && dmesg -c > /dev/null && echo "mkvm-check-mark n=$n"
done
dmesg > /tmp/log
while read -r line; do echo "mkvm-log $line"; done < /tmp/log
echo "mkvm-check-end n=$n sum=$sum log=$(wc -l < /tmp/log)"
`;

/**
 * The timed workloads. Each prints a line "mkvm-bench START NAME" before its work and "mkvm-bench END NAME CHECK" after it, whose
 * times of arrival at the console the host takes; CHECK must be the same on every machine that runs the same initramfs. The end is
 * "mkvm-bench DONE". All of them run in this order, or those named by `mkvm.bench=NAME,NAME` on the kernel command line:
 *   shell   a loop of 100,000 rounds of the shell's own arithmetic and test; CHECK is its sum
 *   md5     md5sum of 64 MiB; CHECK is the digest
 *   gzip    gzip of 16 MiB of busybox's own code; CHECK is the size of the result in bytes
 *   forks   2,000 times fork, exec and wait for a program that does nothing; CHECK is how many of them succeeded
 * What a workload reads is made before its START. 256 MiB of RAM are enough.
 */
export const benchScript = `
names=shell,md5,gzip,forks
for word in $(cat /proc/cmdline); do
  case "$word" in mkvm.bench=*) names="\${word#mkvm.bench=}" ;; esac
done
for name in $(echo "$names" | sed 's/,/ /g'); do
  case "$name" in
  md5) dd if=/dev/zero of=/tmp/data bs=1048576 count=64 2>/dev/null ;;
  gzip)
    for part in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do cat /bin/busybox; done > /tmp/source
    dd if=/tmp/source of=/tmp/data bs=1048576 count=16 2>/dev/null
    rm /tmp/source
    ;;
  esac
  echo "mkvm-bench START $name"
  n=0
  check=0
  case "$name" in
  shell)
    while [ "$n" -lt 100000 ]; do
      n=$((n + 1))
      check=$(((check * 31 + n) % 1000000007))
    done
    ;;
  md5) check=$(md5sum < /tmp/data) ;;
  gzip) check=$(gzip -c /tmp/data | wc -c) ;;
  forks)
    while [ "$n" -lt 2000 ]; do
      n=$((n + 1))
      /bin/true && check=$((check + 1))
    done
    ;;
  *) check=unknown ;;
  esac
  echo "mkvm-bench END $name \${check%% *}"
  rm -f /tmp/data
done
echo "mkvm-bench DONE"
`;
