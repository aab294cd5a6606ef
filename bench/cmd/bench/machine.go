package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// machine describes where the benchmark runs.
func machine() string {
	s := fmt.Sprintf("%s/%s, %d processors, %s", runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), runtime.Version())
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if model := field(string(b), "model name"); model != "" {
			s += ", " + model
		}
	}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		s += ", kernel " + strings.TrimSpace(string(b))
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		load, _, _ := strings.Cut(string(b), " ")
		s += ", load " + load + " before"
	}
	return s
}

// field returns the first value of "name : value" lines.
func field(doc, name string) string {
	for line := range strings.Lines(doc) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// pin keeps this process on processor 0, if there is another one for proxies.
// (Under taskset runtime.NumCPU tells of one.)
func pin() error {
	if err := exec.Command("taskset", "-c", "1", "true").Run(); err != nil {
		return fmt.Errorf("no second processor, or no taskset (%w)", err)
	}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	var set unix.CPUSet
	set.Set(0)
	for _, t := range tasks {
		// A thread that has ended is of no interest; new ones inherit.
		if id, err := strconv.Atoi(t.Name()); err == nil {
			if err := unix.SchedSetaffinity(id, &set); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
	runtime.GOMAXPROCS(1)
	return nil
}

// descriptors raises the limit of open files, for this process and those that
// it starts, and returns it.
func descriptors(want uint64) uint64 {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 1024
	}
	l.Cur = min(l.Max, max(want, l.Cur))
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 1024
	}
	return l.Cur
}
