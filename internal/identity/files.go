package identity

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/fairlead-mesh/fairlead/internal/filewatch"
)

// Files is a Source that reads PEM files and follows their changes. Files that
// are broken or don't belong together leave what was read before in place.
type Files struct {
	Static
	chain, key, roots string
	log               *slog.Logger
	watch             filewatch.Watcher
}

// NewFiles reads the files once; they must be good. roots "" means that peers
// are verified by somebody else, and chain and key "" that there are only
// roots. A nil logger discards.
func NewFiles(chain, key, roots string, log *slog.Logger) (*Files, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	f := &Files{chain: chain, key: key, roots: roots, log: log}
	for _, p := range []string{chain, key, roots} {
		if p != "" {
			f.watch.Paths = append(f.watch.Paths, p)
		}
	}
	f.watch.Prime()
	return f, f.load()
}

func (f *Files) load() error {
	var m Material
	if f.chain != "" || f.key != "" {
		chain, err := os.ReadFile(f.chain)
		if err != nil {
			return fmt.Errorf("certificate chain: %w", err)
		}
		key, err := os.ReadFile(f.key)
		if err != nil {
			return fmt.Errorf("private key: %w", err)
		}
		if m.Certificate, err = ParseCertificate(chain, key); err != nil {
			return fmt.Errorf("certificate %s with key %s: %w", f.chain, f.key, err)
		}
	}
	if f.roots != "" {
		b, err := os.ReadFile(f.roots)
		if err != nil {
			return fmt.Errorf("trusted roots: %w", err)
		}
		if m.Roots, err = ParseRoots(b); err != nil {
			return fmt.Errorf("trusted roots %s: %w", f.roots, err)
		}
		m.RootsPEM = b
	}
	f.Set(m)
	return nil
}

// Run follows the files until ctx ends, and returns ctx's error.
func (f *Files) Run(ctx context.Context) error {
	return f.watch.Run(ctx, func() {
		if err := f.load(); err != nil {
			f.log.Warn("certificate files changed but are not usable; keeping the old ones", "error", err)
			return
		}
		f.log.Info("certificate files reloaded", "chain", f.chain, "roots", f.roots)
	})
}

var _ Source = (*Files)(nil)
