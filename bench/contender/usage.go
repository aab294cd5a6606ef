package contender

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Usage is what a process has used so far.
type Usage struct {
	// CPU is user and system time of all its threads.
	CPU time.Duration
	// RSS is in bytes.
	RSS uint64
}

var errStat = errors.New("/proc/PID/stat has another format")

// Usage reads the process's counters.
func (c *Contender) Usage() (Usage, error) {
	pid := c.cmd.Process.Pid
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return Usage{}, fmt.Errorf("%s is gone: %w", c.Name, err)
	}
	u, err := parseStat(b)
	if err != nil {
		return Usage{}, err
	}
	// The clock of the process counts nanoseconds, stat ticks of 10 ms.
	const cpuClock = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|cpuClock), &ts); err == nil {
		u.CPU = time.Duration(ts.Nano())
	}
	return u, nil
}

func parseStat(b []byte) (Usage, error) {
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	const utime, stime, rss = 11, 12, 21
	if len(f) <= rss {
		return Usage{}, errStat
	}
	var v [3]uint64
	for i, k := range []int{utime, stime, rss} {
		n, err := strconv.ParseUint(f[k], 10, 64)
		if err != nil {
			return Usage{}, errStat
		}
		v[i] = n
	}
	const tick = 10 * time.Millisecond
	return Usage{time.Duration(v[0]+v[1]) * tick, v[2] * uint64(os.Getpagesize())}, nil
}
