package format

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"unicode/utf8"
)

// JSON is a compiled json_format: an object whose string leaves are format
// strings. It is immutable and safe for concurrent use.
type JSON struct {
	root      jsonNode
	omitEmpty bool
}

// jsonNode appends a value; false means that it is absent and, with omitEmpty,
// that nothing is to be kept of it.
type jsonNode interface {
	append(dst []byte, c *Context, omitEmpty bool) ([]byte, bool)
}

// CompileJSON compiles spec: strings are format strings, maps (written with
// sorted keys) and lists nest, other values are constants. A string that is
// one operator keeps its type: numbers and objects aren't quoted, absent
// values are null, or left out with omitEmpty.
func CompileJSON(spec map[string]any, omitEmpty bool) (*JSON, error) {
	n, err := compileJSONNode(spec, 0)
	if err != nil {
		return nil, fmt.Errorf("json_format: %w", err)
	}
	return &JSON{root: n, omitEmpty: omitEmpty}, nil
}

// Append appends the object, without a newline.
func (j *JSON) Append(dst []byte, c *Context) []byte {
	n := len(dst)
	dst, ok := j.root.append(dst, c, j.omitEmpty)
	if !ok {
		return append(dst[:n], "{}"...)
	}
	return dst
}

const maxJSONDepth = 64

func compileJSONNode(v any, depth int) (jsonNode, error) {
	if depth > maxJSONDepth {
		return nil, errors.New("nested too deep")
	}
	switch v := v.(type) {
	case map[string]any:
		o := jsonObject{}
		keys := make([]string, 0, len(v))
		for k := range v {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		for _, k := range keys {
			n, err := compileJSONNode(v[k], depth+1)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", k, err)
			}
			o = append(o, jsonField{string(append(AppendJSONString(nil, k), ':')), n})
		}
		return o, nil
	case []any:
		l := jsonList{}
		for i, e := range v {
			n, err := compileJSONNode(e, depth+1)
			if err != nil {
				return nil, fmt.Errorf("[%d]: %w", i, err)
			}
			l = append(l, n)
		}
		return l, nil
	case string:
		s, err := Compile(v)
		if err != nil {
			return nil, err
		}
		if s.isConst {
			return jsonConst(AppendJSONString(nil, s.constant)), nil
		}
		return jsonString{s}, nil
	case nil, bool, float64:
		return jsonConst(AppendJSON(nil, v)), nil
	}
	return nil, fmt.Errorf("can't hold a %T", v)
}

type jsonField struct {
	key string // quoted, with colon
	v   jsonNode
}

type jsonObject []jsonField

func (o jsonObject) append(dst []byte, c *Context, omitEmpty bool) ([]byte, bool) {
	dst = append(dst, '{')
	first, start := true, len(dst)
	for i := range o {
		n := len(dst)
		if !first {
			dst = append(dst, ',')
		}
		dst = append(dst, o[i].key...)
		var ok bool
		if dst, ok = o[i].v.append(dst, c, omitEmpty); !ok && omitEmpty {
			dst = dst[:n]
			continue
		}
		first = false
	}
	return append(dst, '}'), len(dst) > start || !omitEmpty
}

type jsonList []jsonNode

func (l jsonList) append(dst []byte, c *Context, omitEmpty bool) ([]byte, bool) {
	dst = append(dst, '[')
	first := true
	for _, e := range l {
		n := len(dst)
		if !first {
			dst = append(dst, ',')
		}
		var ok bool
		if dst, ok = e.append(dst, c, omitEmpty); !ok && omitEmpty {
			dst = dst[:n]
			continue
		}
		first = false
	}
	return append(dst, ']'), true
}

type jsonConst string

func (s jsonConst) append(dst []byte, _ *Context, _ bool) ([]byte, bool) {
	return append(dst, s...), true
}

type jsonString struct{ s *String }

func (j jsonString) append(dst []byte, c *Context, omitEmpty bool) ([]byte, bool) {
	if len(j.s.ops) == 1 {
		return appendTyped(dst, &j.s.ops[0], c)
	}
	dst = append(dst, '"')
	for i := range j.s.ops {
		o := &j.s.ops[i]
		n := len(dst)
		if o.text == nil {
			dst = append(dst, o.lit...)
		} else {
			var ok bool
			if dst, ok = o.text(dst, c); !ok && !omitEmpty {
				dst = append(dst, '-')
			}
		}
		dst = escapeTail(dst, n)
	}
	return append(dst, '"'), true
}

// appendTyped appends the value of a single operator.
func appendTyped(dst []byte, o *op, c *Context) ([]byte, bool) {
	if o.json != nil {
		d, ok := o.json(dst, c)
		if !ok {
			return append(d, "null"...), false
		}
		return d, true
	}
	n := len(dst)
	dst = append(dst, '"')
	dst, ok := o.text(dst, c)
	if !ok {
		return append(dst[:n], "null"...), false
	}
	return append(escapeTail(dst, n+1), '"'), true
}

// escapeTail escapes dst[from:] for a JSON string. It copies only if something
// needs an escape.
func escapeTail(dst []byte, from int) []byte {
	for i := from; i < len(dst); i++ {
		if c := dst[i]; c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			tail := string(dst[i:])
			return appendEscaped(dst[:i], tail)
		}
	}
	return dst
}

// AppendJSONString appends s as a JSON string. A byte that is no UTF-8 becomes
// \u00XX.
func AppendJSONString(dst []byte, s string) []byte {
	return append(appendEscaped(append(dst, '"'), s), '"')
}

func appendEscaped(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && n == 1 { // as Envoy shows a byte that is no UTF-8
				dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			} else {
				dst = append(dst, s[i:i+n]...)
			}
			i += n
			continue
		}
		i++
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c >= ' ':
			dst = append(dst, c)
		case c == '\n':
			dst = append(dst, '\\', 'n')
		case c == '\r':
			dst = append(dst, '\\', 'r')
		case c == '\t':
			dst = append(dst, '\\', 't')
		case c == '\b':
			dst = append(dst, '\\', 'b')
		case c == '\f':
			dst = append(dst, '\\', 'f')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
	}
	return dst
}

// AppendJSON appends a metadata value (nil, bool, float64, string, []any,
// map[string]any) as JSON with sorted keys.
func AppendJSON(dst []byte, v any) []byte {
	switch v := v.(type) {
	case nil:
		return append(dst, "null"...)
	case bool:
		return strconv.AppendBool(dst, v)
	case string:
		return AppendJSONString(dst, v)
	case float64:
		return appendNumber(dst, v)
	case []any:
		dst = append(dst, '[')
		for i, e := range v {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = AppendJSON(dst, e)
		}
		return append(dst, ']')
	case map[string]any:
		keys := make([]string, 0, len(v))
		for k := range v {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		dst = append(dst, '{')
		for i, k := range keys {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = append(AppendJSONString(dst, k), ':')
			dst = AppendJSON(dst, v[k])
		}
		return append(dst, '}')
	}
	b, err := json.Marshal(v)
	if err != nil {
		return append(dst, "null"...)
	}
	return append(dst, b...)
}

func appendNumber(dst []byte, f float64) []byte {
	switch {
	case f == math.Trunc(f) && math.Abs(f) < 1<<53:
		return strconv.AppendInt(dst, int64(f), 10)
	case math.IsNaN(f) || math.IsInf(f, 0):
		return append(dst, "null"...)
	}
	return strconv.AppendFloat(dst, f, 'g', -1, 64)
}
