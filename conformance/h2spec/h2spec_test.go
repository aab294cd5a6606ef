// Package h2spec runs h2spec, the conformance suite for HTTP/2, in strict mode
// against Fairlead: over plain TCP, over TLS, and inside an HBONE tunnel. Every
// case must pass.
package h2spec

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	_ "embed"
	"encoding/pem"
	"encoding/xml"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"text/template"
	"time"

	"github.com/fairlead-mesh/fairlead/conformance/behaviour"
)

// cases is how many cases h2spec has in strict mode: one that is lost is a
// failure.
const cases = 146

//go:embed bootstrap.yaml
var bootstrap string

func TestFairleadPassesEveryCaseOfH2spec(t *testing.T) {
	proxy := fairlead(t)
	dir := t.TempDir()
	tool := filepath.Join(dir, "h2spec")
	if out, err := exec.Command("go", "build", "-o", tool, "github.com/summerwind/h2spec/cmd/h2spec").CombinedOutput(); err != nil {
		t.Fatalf("building h2spec: %v\n%s", err, out)
	}
	cert, key := certificate(t, dir)
	ports := map[string]any{"Origin": origin(t), "Cert": cert, "Key": key}
	for _, name := range []string{"Plain", "TLS", "HBONE"} {
		ports[name] = freePort(t)
	}
	start(t, proxy, dir, ports)
	tunnel := forward(t, ports["HBONE"].(int))
	for _, c := range []struct {
		name string
		port int
		args []string
	}{
		{"plain", ports["Plain"].(int), nil},
		{"TLS", ports["TLS"].(int), []string{"-t", "-k"}},
		{"HBONE", tunnel, nil},
		{"plain, long heads", ports["Plain"].(int), []string{"--max-header-length", "16000"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			report := filepath.Join(t.TempDir(), "report.xml")
			args := append([]string{"-S", "-h", "127.0.0.1", "-p", strconv.Itoa(c.port), "-j", report}, c.args...)
			out, runErr := exec.Command(tool, args...).CombinedOutput() // fails if a case does
			total, failed, err := tally(report)
			if err != nil {
				t.Fatalf("h2spec: %v, %v\n%s", runErr, err, out)
			}
			t.Logf("%d of %d cases pass", total-len(failed), total)
			for _, f := range failed {
				t.Errorf("failed: %s", f)
			}
			if total != cases {
				t.Errorf("%d cases ran, want %d", total, cases)
			}
			if t.Failed() {
				t.Logf("%s", out)
			}
		})
	}
}

// tally reads a JUnit report: how many cases ran, and which did not pass.
func tally(path string) (total int, failed []string, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, nil, err
	}
	var r struct {
		Suites []struct {
			Cases []struct {
				Package string    `xml:"package,attr"`
				Name    string    `xml:"classname,attr"`
				Failure *struct{} `xml:"failure"`
				Skipped *struct{} `xml:"skipped"`
				Error   *struct{} `xml:"error"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(data, &r); err != nil {
		return 0, nil, err
	}
	for _, s := range r.Suites {
		for _, c := range s.Cases {
			total++
			if c.Failure != nil || c.Skipped != nil || c.Error != nil {
				failed = append(failed, c.Package+" "+c.Name)
			}
		}
	}
	return total, failed, nil
}

func fairlead(t *testing.T) string {
	bin := os.Getenv("FAIRLEAD_BIN")
	if bin == "" {
		bin = filepath.Join("..", "..", "bin", "fairlead")
	}
	bin, err := filepath.Abs(bin)
	if err == nil {
		_, err = os.Stat(bin)
	}
	if err != nil {
		if testing.Short() {
			t.Skip(err)
		}
		t.Fatalf("no fairlead to test: run make build, or set FAIRLEAD_BIN to an absolute path: %v", err)
	}
	return bin
}

// origin answers when it has read the request and a moment has passed: a case
// that breaks its request must do so before the stream has ended.
func origin(t *testing.T) int {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
		_, _ = io.WriteString(w, "hello") // the proxy may have given up
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().(*net.TCPAddr).Port
}

func freePort(t *testing.T) int {
	port, release, err := behaviour.ReservePort()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	return port
}

func certificate(t *testing.T, dir string) (cert, key string) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "h2spec"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, b := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// start runs the proxy until the test ends, and waits for its ports.
func start(t *testing.T, proxy, dir string, values map[string]any) {
	var config, output bytes.Buffer
	if err := template.Must(template.New("").Option("missingkey=error").Parse(bootstrap)).Execute(&config, values); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "bootstrap.yaml")
	if err := os.WriteFile(file, config.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(proxy, "proxy", "-c", file)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &output, &output
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		if t.Failed() {
			t.Logf("fairlead:\n%s", output.String())
		}
	})
	for _, name := range []string{"Plain", "TLS", "HBONE"} {
		addr := fmt.Sprintf("127.0.0.1:%d", values[name])
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			c, err := net.Dial("tcp4", addr)
			if err == nil {
				c.Close()
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s does not accept: %v", name, err)
			}
		}
	}
}

// forward returns a port whose connections become CONNECT streams over the
// HBONE port, as those of a ztunnel do.
func forward(t *testing.T, hbone int) int {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // a test's own peer
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				if err := tunnel(ctx, tr, c, hbone); err != nil && ctx.Err() == nil {
					t.Errorf("tunnel: %v", err)
				}
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		l.Close()
		tr.CloseIdleConnections()
		wg.Wait()
	})
	return l.Addr().(*net.TCPAddr).Port
}

// tunnel carries c over a CONNECT stream until either side ends it.
func tunnel(ctx context.Context, tr *http.Transport, c net.Conn, hbone int) error {
	pr, pw := io.Pipe()
	req := (&http.Request{
		Method: http.MethodConnect, URL: &url.URL{Scheme: "https", Host: fmt.Sprintf("127.0.0.1:%d", hbone)},
		Host: "10.0.0.1:80", Header: http.Header{}, Body: pr, ContentLength: -1,
	}).WithContext(ctx)
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 || resp.ProtoMajor != 2 {
		return fmt.Errorf("CONNECT: %s %s", resp.Proto, resp.Status)
	}
	go func() {
		_, err := io.Copy(pw, c)
		_ = pw.CloseWithError(err)
	}()
	_, _ = io.Copy(c, resp.Body) // the proxy ends many of these connections, as it should
	return nil
}
