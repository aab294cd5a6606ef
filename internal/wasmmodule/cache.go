package wasmmodule

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

const (
	indexFile  = "index.json"
	fileSuffix = ".wasm"
	// maxNames bounds the index: each version of a resource may be another name.
	maxNames = 4096
)

// cache keeps modules by the digest of their content, and under which names they
// were got. With a directory they are files, so that neither a module takes
// memory once it is compiled nor a restart of the container fetches it again;
// what is read back is verified. It is safe for concurrent use.
type cache struct {
	dir    string // "" keeps everything in memory
	max    int64
	expiry time.Duration
	log    *slog.Logger

	opened sync.Once

	mu    sync.Mutex
	blobs map[string]*blob
	names map[string]string // what was asked for, to its content
	total int64
}

type blob struct {
	size int64
	used time.Time
	pins int    // who may ask for it again
	mem  []byte // nil with a directory
}

// newCache returns a cache in dir, or in memory if it can't be used. It is opened
// when it is first asked for something.
func newCache(dir string, limit int64, expiry time.Duration, log *slog.Logger) *cache {
	return &cache{dir: dir, max: limit, expiry: expiry, log: log, blobs: map[string]*blob{}, names: map[string]string{}}
}

// ready opens the cache.
func (c *cache) ready() {
	if c.dir == "" {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.open()
	if err == nil {
		return
	}
	level := slog.LevelWarn
	if errors.Is(err, fs.ErrNotExist) { // what it is in belongs to Istio's pods
		level = slog.LevelInfo
	}
	c.log.Log(context.Background(), level, "the directory of WebAssembly modules can't be used; they are kept in memory", "dir", c.dir, "error", err)
	c.dir, c.total = "", 0
	clear(c.blobs)
	clear(c.names)
}

func (c *cache) open() error {
	if err := os.Mkdir(c.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	probe, err := os.CreateTemp(c.dir, ".new-*")
	if err != nil {
		return err
	}
	_ = probe.Close()
	_ = os.Remove(probe.Name())
	files, err := os.ReadDir(c.dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		sum, ok := strings.CutSuffix(f.Name(), fileSuffix)
		info, err := f.Info()
		switch {
		case err != nil || !info.Mode().IsRegular():
		case ok && isSHA256(sum):
			c.blobs[sum] = &blob{size: info.Size(), used: info.ModTime()}
			c.total += info.Size()
		case strings.HasPrefix(f.Name(), ".new-"): // a process that ended while it wrote
			_ = os.Remove(filepath.Join(c.dir, f.Name()))
		}
	}
	b, err := os.ReadFile(filepath.Join(c.dir, indexFile))
	if err == nil {
		err = json.Unmarshal(b, &c.names)
	}
	if err != nil || c.names == nil { // without the index they are fetched again, once
		c.names = map[string]string{}
	}
	c.forgetNamesLocked()
	c.makeRoomLocked(0)
	return nil
}

func sumOf(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// known returns the digest of what was got under a name, "" if it is not there.
func (c *cache) known(name string) string {
	c.opened.Do(c.ready)
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.names[name]
}

// remember notes that name is the module called sum, which is there.
func (c *cache) remember(name, sum string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.blobs[sum] == nil || c.names[name] == sum {
		return
	}
	for old := range c.names { // any: it is asked for again
		if len(c.names) < maxNames {
			break
		}
		delete(c.names, old)
	}
	c.names[name] = sum
	c.writeIndexLocked()
}

// get returns the content called sum, nil if it isn't there, or isn't that.
func (c *cache) get(sum string) []byte {
	c.mu.Lock()
	b := c.blobs[sum]
	if b == nil {
		c.mu.Unlock()
		return nil
	}
	b.used = time.Now()
	mem := b.mem
	c.mu.Unlock()
	if mem != nil {
		return mem
	}
	data, err := os.ReadFile(c.file(sum))
	if err == nil && sumOf(data) == sum {
		return data
	}
	c.log.Warn("a kept WebAssembly module is not what it was; it is fetched again", "sha256", sum, "error", err)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.blobs[sum] == b {
		c.dropLocked(sum)
		c.writeIndexLocked()
	}
	return nil
}

// put keeps data, pinned, and returns its digest.
func (c *cache) put(data []byte) (sum string, err error) {
	sum = sumOf(data)
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.blobs[sum]
	if b == nil {
		if !c.makeRoomLocked(int64(len(data))) {
			return "", fmt.Errorf("no room for a module of %d bytes: those in use take %d of %d", len(data), c.total, c.max)
		}
		b = &blob{size: int64(len(data)), mem: data}
		if c.dir != "" {
			if err := c.write(sum+fileSuffix, data); err != nil {
				return "", fmt.Errorf("keeping the module: %w", err)
			}
			b.mem = nil
		}
		c.blobs[sum] = b
		c.total += b.size
	}
	b.used = time.Now()
	b.pins++
	return sum, nil
}

// pin keeps sum from being removed; it reports false if it isn't there.
func (c *cache) pin(sum string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.blobs[sum]
	if b == nil {
		return false
	}
	b.pins++
	b.used = time.Now()
	return true
}

// unpin takes back a pin, or one of put.
func (c *cache) unpin(sum string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b := c.blobs[sum]; b != nil && b.pins > 0 {
		b.pins--
		b.used = time.Now()
	}
}

// purge removes what nobody has used for the time of expiry.
func (c *cache) purge(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.blobs)
	for sum, b := range c.blobs {
		switch {
		case b.pins > 0:
			b.used = now
			if c.dir != "" {
				_ = os.Chtimes(c.file(sum), now, now) // for the next process
			}
		case now.Sub(b.used) > c.expiry:
			c.dropLocked(sum)
		}
	}
	if len(c.blobs) < n {
		c.writeIndexLocked()
	}
}

// makeRoomLocked removes what was not used for longest until n bytes fit.
func (c *cache) makeRoomLocked(n int64) bool {
	dropped := false
	for c.total+n > c.max {
		oldest := ""
		for sum, b := range c.blobs {
			if b.pins == 0 && (oldest == "" || b.used.Before(c.blobs[oldest].used)) {
				oldest = sum
			}
		}
		if oldest == "" {
			break
		}
		c.dropLocked(oldest)
		dropped = true
	}
	if dropped {
		c.writeIndexLocked()
	}
	return c.total+n <= c.max
}

func (c *cache) dropLocked(sum string) {
	c.total -= c.blobs[sum].size
	delete(c.blobs, sum)
	if c.dir != "" {
		if err := os.Remove(c.file(sum)); err != nil && !os.IsNotExist(err) {
			c.log.Warn("removing a WebAssembly module", "sha256", sum, "error", err)
		}
	}
	c.forgetNamesLocked()
}

func (c *cache) forgetNamesLocked() {
	for name, sum := range c.names {
		if c.blobs[sum] == nil {
			delete(c.names, name)
		}
	}
}

func (c *cache) file(sum string) string { return filepath.Join(c.dir, sum+fileSuffix) }

func (c *cache) writeIndexLocked() {
	if c.dir == "" {
		return
	}
	b, err := json.Marshal(c.names)
	if err == nil {
		err = c.write(indexFile, b)
	}
	if err != nil {
		c.log.Warn("the index of WebAssembly modules is not written; a restart fetches them again", "error", err)
	}
}

// write replaces a file as a whole.
func (c *cache) write(name string, data []byte) error {
	f, err := os.CreateTemp(c.dir, ".new-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(c.dir, name))
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// size is the number of modules and their bytes.
func (c *cache) size() (modules int, bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.blobs), c.total
}
