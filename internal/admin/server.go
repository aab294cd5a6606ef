package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/stats"
)

// Server serves a handler on one address.
type Server struct {
	l    net.Listener
	srv  *http.Server
	done chan struct{}
}

// Serve listens on addr ("127.0.0.1:15000") and serves h until Close. A nil
// logger discards what net/http complains about.
func Serve(addr string, h http.Handler, log *slog.Logger) (*Server, error) {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("admin: %w (is another proxy running here?)", err)
	}
	return serve(l, addr, h, log), nil
}

// ServeUnix is Serve on a Unix socket; a path that begins with @ is one without
// file. The file gets the permissions mode, 0 is what the umask leaves. One that
// a former process left is replaced, one that somebody listens on is not. Close
// removes it.
func ServeUnix(path string, mode os.FileMode, h http.Handler, log *slog.Logger) (*Server, error) {
	file := !strings.HasPrefix(path, "@")
	if st, err := os.Lstat(path); file && err == nil {
		if st.Mode().Type() != fs.ModeSocket {
			return nil, fmt.Errorf("admin: %s is there, and is no socket", path)
		}
		if c, err := (&net.Dialer{Timeout: time.Second}).DialContext(context.Background(), "unix", path); err == nil {
			_ = c.Close()
			return nil, fmt.Errorf("admin: somebody listens on %s (is another proxy running here?)", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("admin: %w", err)
		}
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("admin: %w (does the folder exist, and may this user write to it?)", err)
	}
	if file && mode != 0 {
		if err := os.Chmod(path, mode); err != nil {
			_ = l.Close()
			return nil, fmt.Errorf("admin: %w", err)
		}
	}
	return serve(l, path, h, log), nil
}

func serve(l net.Listener, addr string, h http.Handler, log *slog.Logger) *Server {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Server{l: l, done: make(chan struct{}), srv: &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}}
	go func() {
		defer close(s.done)
		if err := s.srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("admin server ended", "address", addr, "error", err)
		}
	}()
	return s
}

// Addr is the address that the server listens on, with its port.
func (s *Server) Addr() net.Addr { return s.l.Addr() }

// Close lets running requests end for up to a second, then closes everything.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err := s.srv.Shutdown(ctx)
	if err != nil {
		err = s.srv.Close()
	}
	<-s.done
	return err
}

// Probe answers 200 while ready returns nil, else 503 with the reason: the
// handler of port 15021, /healthz/ready.
func Probe(ready func() error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		text(w)
		if err := ready(); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			write(w, "%v\n", err)
		}
	})
}

// HealthHandler serves /healthz/ready by ready.
func HealthHandler(ready func() error) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/healthz/ready", Probe(ready))
	return mux
}

// AgentHandler serves what Istio's agent serves on port 15020:
// /stats/prometheus (series that are in use), /healthz/ready, and, if quit is
// not nil, POST /quitquitquit from loopback addresses.
func AgentHandler(r *stats.Registry, ready func() error, quit func()) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/healthz/ready", Probe(ready))
	metrics := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", prometheusType)
		_ = r.WritePrometheusUsed(w, nil)
	})
	mux.Handle("/stats/prometheus", metrics)
	mux.Handle("/metrics", metrics)
	if quit != nil {
		s := &Source{Quit: quit}
		mux.HandleFunc("/quitquitquit", needPOST(func(w http.ResponseWriter, req *http.Request) {
			if !fromLoopback(req) {
				http.Error(w, "Forbidden: only from a loopback address", http.StatusForbidden)
				return
			}
			s.quit(w, req)
		}))
	}
	return mux
}

func fromLoopback(r *http.Request) bool {
	a, err := net.ResolveTCPAddr("tcp", r.RemoteAddr)
	return err == nil && a.IP.IsLoopback()
}
