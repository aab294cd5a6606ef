package jwtauthn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync/atomic"

	"github.com/fairlead-mesh/fairlead/internal/filewatch"
)

// fileKeys are the keys of a file. When it changes they are read again; new
// content that is no JWKS leaves the former keys in use.
type fileKeys struct {
	path string
	log  *slog.Logger // nil discards
	keys atomic.Pointer[keySet]
	stop context.CancelFunc
	done chan struct{}
}

// fileKey identifies file keys that are shared.
type fileKey struct{ path string }

// openKeys reads the keys of a file and watches it. A file that cannot be read
// holds no keys: all tokens are refused until it can. They must be closed.
func openKeys(path string, log *slog.Logger) *fileKeys {
	f := &fileKeys{path: path, log: log, done: make(chan struct{})}
	f.keys.Store(&keySet{})
	w := &filewatch.Watcher{Paths: []string{path}}
	w.Prime()
	f.read()
	ctx, stop := context.WithCancel(context.Background())
	f.stop = stop
	go func() {
		defer close(f.done)
		_ = w.Run(ctx, f.read) // ends with ctx
	}()
	return f
}

// Close implements io.Closer.
func (f *fileKeys) Close() error {
	f.stop()
	<-f.done
	return nil
}

func (f *fileKeys) read() {
	set, err := readKeys(f.path)
	if err == nil {
		f.keys.Store(set)
		return
	}
	if f.log != nil {
		f.log.Error("jwks file is not usable", "file", f.path, "keys_in_use", len(f.keys.Load().keys), "error", err)
	}
}

func readKeys(path string) (*keySet, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }() // only read
	b, err := io.ReadAll(io.LimitReader(file, maxJWKS+1))
	if err != nil {
		return nil, err
	}
	set, skipped, err := parseKeys(b)
	if err == nil && len(set.keys) == 0 {
		err = errors.Join(append([]error{errors.New("jwks: no key is usable")}, skipped...)...)
	}
	return set, err
}

// environmentKeys returns the keys that an environment variable holds.
func environmentKeys(name string) (*keySet, error) {
	v, given := os.LookupEnv(name)
	if !given {
		return nil, fmt.Errorf("environment variable %s is not set", name)
	}
	set, _, err := parseKeys([]byte(v))
	return set, err
}
