package istio

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	istiolog "istio.io/istio/pkg/log"
)

// inside is set in the process that runs the tests.
const inside = "FAIRLEAD_ISTIO_INSIDE"

// promised is the number of scenarios.
const promised = 39

// the mesh that all scenarios share.
var world *mesh

func TestMain(m *testing.M) {
	if os.Getenv(inside) == "" {
		os.Exit(enclose())
	}
	os.Exit(run(m))
}

// enclose runs this program again in a network of its own, where every address
// is free and nothing leads out, with istiod's ambient mode switched on:
// istiod reads its environment before main does.
func enclose() int {
	runtime.LockOSThread() // the death of this thread would end the child
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1", "PILOT_ENABLE_AMBIENT=true")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	cmd.SysProcAttr = attr
	err = cmd.Start()
	if errors.Is(err, syscall.EPERM) {
		fmt.Println("istio: SKIPPED, this kernel lets neither root nor this user make a network namespace")
		return 0
	}
	if err == nil {
		err = cmd.Wait()
	}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		return exit.ExitCode()
	case err != nil:
		fmt.Fprintln(os.Stderr, "istio:", err)
		return 1
	}
	return 0
}

func run(m *testing.M) int {
	for _, s := range istiolog.Scopes() {
		s.SetOutputLevel(istiolog.ErrorLevel)
	}
	var err error
	if err = loopbackUp(); err == nil {
		world, err = startMesh()
	}
	code := 1
	if err != nil {
		fmt.Fprintln(os.Stderr, "istio:", err)
	} else {
		code = m.Run()
	}
	if code == 0 && flag.Lookup("test.run").Value.String() == "" {
		if err := allRan(); err != nil {
			fmt.Fprintln(os.Stderr, "istio:", err)
			code = 1
		}
	}
	if err := world.stop(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, "istio:", err)
		code = 1
	}
	return code
}

// allRan fails unless each folder of testdata was a scenario, and all that are
// promised were.
func allRan() error {
	dirs, err := filepath.Glob("testdata/*/")
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if name := filepath.Base(d); scenarios[name] == 0 {
			return fmt.Errorf("no test ran the scenario testdata/%s", name)
		}
	}
	if len(scenarios) < promised {
		return fmt.Errorf("%d scenarios ran, want %d", len(scenarios), promised)
	}
	return nil
}

// loopbackUp gives the new network its loopback addresses.
func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, r)
}
