"""User input, and the passwords of remote displays."""

TEXT = """
enum DisplayProtocol
  vnc spice

enum SetPasswordAction
  keep fail disconnect

union SetPasswordOptions by protocol
  protocol: DisplayProtocol
  password: str
  connected?: SetPasswordAction
  case vnc: SetPasswordOptionsVnc

struct SetPasswordOptionsVnc
  display?: str

command set_password : SetPasswordOptions

union ExpirePasswordOptions by protocol
  protocol: DisplayProtocol
  time: str
  case vnc: ExpirePasswordOptionsVnc

struct ExpirePasswordOptionsVnc
  display?: str

command expire_password : ExpirePasswordOptions

struct MouseInfo
  name: str
  index: int
  current: bool
  absolute: bool

command query-mice -> [MouseInfo]

enum QKeyCode
  unmapped shift shift_r alt alt_r ctrl ctrl_r menu esc 1 2 3 4 5 6 7 8 9 0 minus equal backspace tab
  q w e r t y u i o p bracket_left bracket_right ret a s d f g h j k l semicolon apostrophe grave_accent backslash
  z x c v b n m comma dot slash asterisk spc caps_lock f1 f2 f3 f4 f5 f6 f7 f8 f9 f10 num_lock scroll_lock
  kp_divide kp_multiply kp_subtract kp_add kp_enter kp_decimal sysrq
  kp_0 kp_1 kp_2 kp_3 kp_4 kp_5 kp_6 kp_7 kp_8 kp_9
  less f11 f12 print home pgup pgdn end left up down right insert delete
  stop again props undo front copy open paste find cut lf help meta_l meta_r compose pause
  ro hiragana henkan yen muhenkan katakanahiragana kp_comma kp_equals power sleep wake
  audionext audioprev audiostop audioplay audiomute volumeup volumedown mediaselect mail calculator computer
  ac_home ac_back ac_forward ac_refresh ac_bookmarks lang1 lang2

enum KeyValueKind
  number qcode

struct IntWrapper
  data: int

struct QKeyCodeWrapper
  data: QKeyCode

union KeyValue by type
  type: KeyValueKind
  case number: IntWrapper
  case qcode: QKeyCodeWrapper

command send-key
  keys: [KeyValue]
  hold-time?: int

enum InputButton
  left middle right wheel-up wheel-down side extra wheel-left wheel-right

enum InputAxis
  x y

struct InputKeyEvent
  key: KeyValue
  down: bool

struct InputBtnEvent
  button: InputButton
  down: bool

struct InputMoveEvent
  axis: InputAxis
  value: int

enum InputEventKind
  key btn rel abs

struct InputKeyEventWrapper
  data: InputKeyEvent

struct InputBtnEventWrapper
  data: InputBtnEvent

struct InputMoveEventWrapper
  data: InputMoveEvent

union InputEvent by type
  type: InputEventKind
  case key: InputKeyEventWrapper
  case btn: InputBtnEventWrapper
  case rel: InputMoveEventWrapper
  case abs: InputMoveEventWrapper

command input-send-event
  device?: str
  head?: int
  events: [InputEvent]
"""
