package sweep

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// entry is one input: the arguments of a target.
type entry []arg

// arg is one argument: b if it is a []byte or string, else the bits of a number
// or bool.
type arg struct {
	kind reflect.Kind
	b    []byte
	n    uint64
}

// bytes can't be appended to in place.
func (a *arg) bytes() []byte { return slices.Clip(a.b) }

// value is a for a parameter of type t.
func (a *arg) value(t reflect.Type) reflect.Value {
	v := reflect.New(t).Elem()
	switch a.kind {
	case reflect.Slice:
		v.SetBytes(a.bytes())
	case reflect.String:
		v.SetString(string(a.b))
	case reflect.Bool:
		v.SetBool(a.n&1 != 0)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(int64(a.n))
	case reflect.Float32:
		v.SetFloat(float64(math.Float32frombits(uint32(a.n))))
	case reflect.Float64:
		v.SetFloat(math.Float64frombits(a.n))
	default:
		v.SetUint(a.n)
	}
	return v
}

func entryOf(values []reflect.Value) entry {
	e := make(entry, len(values))
	for i, v := range values {
		e[i].kind = v.Kind()
		switch v.Kind() {
		case reflect.Slice:
			e[i].b = bytes.Clone(v.Bytes())
		case reflect.String:
			e[i].b = []byte(v.String())
		case reflect.Bool:
			if v.Bool() {
				e[i].n = 1
			}
		case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
			e[i].n = uint64(v.Int())
		case reflect.Float32:
			e[i].n = uint64(math.Float32bits(float32(v.Float())))
		case reflect.Float64:
			e[i].n = math.Float64bits(v.Float())
		default:
			e[i].n = v.Uint()
		}
	}
	return e
}

const fileHeader = "go test fuzz v1\n"

// encode writes e as package testing does in testdata/fuzz.
func encode(e entry, types []reflect.Type) []byte {
	var b bytes.Buffer
	b.WriteString(fileHeader)
	for i, t := range types {
		v := e[i].value(t).Interface()
		switch v := v.(type) {
		case []byte:
			fmt.Fprintf(&b, "[]byte(%q)\n", v)
		case string:
			fmt.Fprintf(&b, "string(%q)\n", v)
		case byte:
			fmt.Fprintf(&b, "byte(%q)\n", v)
		case float32:
			fmt.Fprintf(&b, "math.Float32frombits(0x%x)\n", math.Float32bits(v))
		case float64:
			fmt.Fprintf(&b, "math.Float64frombits(0x%x)\n", math.Float64bits(v))
		default:
			fmt.Fprintf(&b, "%T(%v)\n", v, v)
		}
	}
	return b.Bytes()
}

// write puts e into dir and returns the file's name, which without a name is
// made of the content.
func write(dir, name string, e entry, types []reflect.Type) (string, error) {
	b := encode(e, types)
	if name == "" {
		name = fmt.Sprintf("%x", sha256.Sum256(b))[:16]
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // beside the source
		return "", err
	}
	name = filepath.Join(dir, name)
	return name, os.WriteFile(name, b, 0o644) //nolint:gosec // a file of the source
}

// readCorpus reads the inputs in dir, sorted by name; there are none if dir does
// not exist. Those of other types than a target has now are left out.
func readCorpus(dir string, types []reflect.Type) ([]entry, error) {
	files, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var es []entry
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			return nil, err
		}
		if e, err := decode(b, types); err == nil {
			es = append(es, e)
		}
	}
	return es, nil
}

var errFormat = errors.New("no input of this target")

// decode reads what encode, or package testing, wrote.
func decode(b []byte, types []reflect.Type) (entry, error) {
	rest, ok := strings.CutPrefix(string(b), fileHeader)
	if !ok {
		return nil, errFormat
	}
	lines := strings.FieldsFunc(rest, func(r rune) bool { return r == '\n' })
	if len(lines) != len(types) {
		return nil, errFormat
	}
	e := make(entry, len(types))
	for i, line := range lines {
		if err := e[i].parse(line, types[i]); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// parse reads one line, a conversion of a literal to t.
func (a *arg) parse(line string, t reflect.Type) error {
	x, err := parser.ParseExpr(line)
	if err != nil {
		return err
	}
	call, ok := x.(*ast.CallExpr)
	if !ok || len(call.Args) != 1 || !slices.Contains(spellings(t), line[:max(0, strings.IndexByte(line, '('))]) {
		return errFormat
	}
	a.kind = t.Kind()
	text := line[call.Args[0].Pos()-1 : call.Args[0].End()-1]
	lit, _ := call.Args[0].(*ast.BasicLit)
	switch {
	case a.kind == reflect.Slice || a.kind == reflect.String:
		s, err := strconv.Unquote(text)
		a.b = []byte(s)
		return err
	case a.kind == reflect.Bool:
		v, err := strconv.ParseBool(text)
		if v {
			a.n = 1
		}
		return err
	case lit != nil && lit.Kind == token.CHAR:
		r, _, _, err := strconv.UnquoteChar(text[1:len(text)-1], '\'')
		a.n = uint64(r)
		return err
	case t.Kind() >= reflect.Int && t.Kind() <= reflect.Int64:
		v, err := strconv.ParseInt(text, 0, t.Bits())
		a.n = uint64(v)
		return err
	default: // an unsigned number, or the bits of a float
		a.n, err = strconv.ParseUint(text, 0, t.Bits())
		return err
	}
}

// spellings are the names of t in files.
func spellings(t reflect.Type) []string {
	switch t.Kind() {
	case reflect.Slice:
		return []string{"[]byte"}
	case reflect.Uint8:
		return []string{"byte", "uint8"}
	case reflect.Int32:
		return []string{"int32", "rune"}
	case reflect.Float32:
		return []string{"math.Float32frombits"}
	case reflect.Float64:
		return []string{"math.Float64frombits"}
	default:
		return []string{t.Kind().String()}
	}
}
