package behaviour

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Proxy is a program that reads an Envoy bootstrap.
type Proxy struct {
	// Name is shown in failures.
	Name string
	// Command is the program and its arguments; "FILE" is the bootstrap.
	Command []string
	// LazyLog says that the access log is written a second late.
	LazyLog bool
}

// Envoy is the proxy the corpus was written from.
func Envoy(bin string) Proxy {
	return Proxy{Name: "envoy", Command: []string{
		bin, "--use-dynamic-base-id", "-l", "critical", "--concurrency", "1", "--file-flush-interval-msec", "10", "-c", "FILE",
	}}
}

// Fairlead is the proxy under test.
func Fairlead(bin string) Proxy {
	return Proxy{Name: "fairlead", Command: []string{bin, "proxy", "-c", "FILE"}, LazyLog: true}
}

// Instance is a proxy process that serves one suite, with its origins.
type Instance struct {
	suite   *Suite
	lazyLog bool
	places  Places
	origins *origins
	cmd     *exec.Cmd
	exited  chan struct{}
	output  output
	logged  int       // bytes of the access log that earlier cases read
	release [3]func() // of the ports of the listener, of nobody and of the admin interface
}

// output keeps what the process writes.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements [io.Writer].
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// Start starts p with the bootstrap of s and waits until its port accepts.
// Files are kept in dir.
func (p Proxy) Start(s *Suite, dir string) (*Instance, error) {
	in := &Instance{suite: s, lazyLog: p.LazyLog, exited: make(chan struct{})}
	var err error
	if in.origins, err = startOrigins(); err != nil {
		return nil, err
	}
	if err := in.start(p, dir); err != nil {
		in.Stop()
		return nil, fmt.Errorf("%s: %w", p.Name, err)
	}
	return in, nil
}

func (in *Instance) start(p Proxy, dir string) error {
	if err := in.place(dir); err != nil {
		return err
	}
	config, err := in.places.expand(in.suite.Bootstrap)
	if err != nil {
		return fmt.Errorf("bootstrap.yaml: %w", err)
	}
	file := filepath.Join(dir, "bootstrap.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return err
	}
	args := append([]string(nil), p.Command...)
	for i := range args {
		if args[i] == "FILE" {
			args[i] = file
		}
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &in.output, &in.output
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	in.cmd = cmd
	go func() {
		_ = cmd.Wait() // the output says why it ended
		close(in.exited)
	}()
	return in.ready()
}

// place chooses the ports.
func (in *Instance) place(dir string) error {
	var ports [3]int
	for i := range ports {
		port, release, err := ReservePort()
		if err != nil {
			return err
		}
		ports[i], in.release[i] = port, release
	}
	in.places = Places{
		Port: ports[0], Origin: in.origins.port(0), Origin2: in.origins.port(1), Authz: in.origins.authz.l.Addr().(*net.TCPAddr).Port,
		Dead: ports[1], Admin: ports[2], Log: filepath.Join(dir, "access.log"),
	}
	var err error
	if in.places.Guests, err = filepath.Abs("../../filters/internal/proxywasm/testdata"); err != nil {
		return err
	}
	in.places.hosts, err = ownAddresses()
	return err
}

// ownAddresses returns the IPv4 addresses of the machine that are not loopback.
func ownAddresses() ([]string, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var hosts []string
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() {
			hosts = append(hosts, n.IP.String())
		}
	}
	return hosts, nil
}

func (in *Instance) ready() error {
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		select {
		case <-in.exited:
			return fmt.Errorf("the process ended at once; its output:\n%s", in.output.String())
		default:
		}
		if in.suite.Quiet {
			if in.listens() {
				return nil
			}
			time.Sleep(10 * time.Millisecond)
			continue
		}
		c, err := net.DialTimeout("tcp4", fmt.Sprintf("127.0.0.1:%d", in.places.Port), time.Second)
		if err == nil {
			err = c.Close()
			if in.suite.asks() {
				time.Sleep(100 * time.Millisecond) // it may be asked about this connection
			}
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.New("the listener's port did not accept within 20s")
}

// listens reports whether somebody listens at the port, without a connection.
func (in *Instance) listens() bool {
	table, err := os.ReadFile("/proc/net/tcp")
	return err == nil && strings.Contains(string(table), fmt.Sprintf(" 0100007F:%04X 00000000:0000 0A ", in.places.Port))
}

// Stop ends the process and the origins.
func (in *Instance) Stop() {
	if in.cmd != nil {
		_ = in.cmd.Process.Kill() // it may have ended by itself
		<-in.exited
	}
	in.origins.close()
	for _, release := range in.release {
		if release != nil {
			release()
		}
	}
}

// Result is the outcome of one case.
type Result struct {
	Seen Seen
	Err  error
}

// RunAll runs every case of the suite in order.
//
// The lines of a lazy access log are waited for once, after all cases, and
// compared in any order: a request is logged when it has ended, which may be
// after the next one on another connection. When they are not what the cases
// want, everything is run again and waited for case by case, so that a line
// that is missing does not move the others.
func (in *Instance) RunAll() []Result {
	if !in.lazyLog || !in.suite.logs() {
		return in.runEach(true)
	}
	results := in.runEach(false)
	var want strings.Builder
	for i, c := range in.suite.Cases {
		results[i].Seen.Log = c.Fairlead().Log
		want.WriteString(strings.ReplaceAll(results[i].Seen.Log, "nothing\n", ""))
	}
	got, err := in.log(strings.Count(want.String(), "\n"), 10*time.Second)
	if err == nil && Match(sortLines(want.String()), sortLines(in.places.mask(got))) {
		return results
	}
	in.origins.hangUp() // the first run found no connection to use again
	return in.runEach(true)
}

func sortLines(text string) string {
	lines := strings.SplitAfter(text, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "")
}

func (in *Instance) runEach(log bool) []Result {
	results := make([]Result, len(in.suite.Cases))
	for i, c := range in.suite.Cases {
		results[i].Seen, results[i].Err = in.run(c, log)
	}
	return results
}

func (in *Instance) run(c *Case, log bool) (Seen, error) {
	chunks := make([]Chunk, len(c.Request))
	var sent strings.Builder
	for i, ch := range c.Request {
		data, err := ch.Data, error(nil)
		if c.Streams == nil { // the lengths of frames are fixed
			data, err = in.places.expand(ch.Data)
		}
		if err != nil {
			return Seen{}, fmt.Errorf("request: %w", err)
		}
		chunks[i] = Chunk{Pause: ch.Pause, Data: data}
		sent.WriteString(data)
	}
	rec := in.origins.begin(c.Origins, c.Verdicts)
	var client string
	var err error
	if c.Streams != nil {
		client, err = exchangeH2(in.places.Port, chunks, c.Streams, in.suite.Show)
	} else {
		client, err = exchange(in.places.Port, chunks, c.Client, in.suite.Show)
	}
	if err != nil {
		return Seen{}, fmt.Errorf("%w; output:\n%s", err, in.output.String())
	}
	time.Sleep(c.Client.Settle)
	seen := Seen{Upstream: in.places.mask(rec.canonical(sent.String())), Client: in.places.mask(client)}
	if in.suite.asks() {
		seen.Authz = in.places.mask(rec.questions(sent.String()))
	}
	if log && in.suite.logs() {
		text, err := in.log(max(c.Client.Responses, strings.Count(c.Fairlead().Log, "\n")), 6*time.Second)
		if err != nil {
			return Seen{}, err
		}
		seen.Log = in.places.mask(text)
	}
	return seen, nil
}

// log returns the next lines of the access log, n of them if they come within
// patience.
func (in *Instance) log(n int, patience time.Duration) (string, error) {
	var text string
	for end := time.Now().Add(patience); time.Now().Before(end); {
		data, err := os.ReadFile(in.places.Log)
		if err != nil && !os.IsNotExist(err) {
			return "", err
		}
		text = string(data[min(in.logged, len(data)):])
		if strings.Count(text, "\n") >= n {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	in.logged += len(text)
	if text == "" {
		text = "nothing\n"
	}
	return text, nil
}
