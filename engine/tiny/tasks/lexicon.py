"""The words that the tasks are made of. Each becomes one token, so a small model can copy and sort them."""

NAMES = (
    "Alice", "Boris", "Clara", "David", "Elena", "Felix", "Grace", "Hugo", "Irene", "Jonas", "Karin", "Louis",
    "Maria", "Nora", "Oscar", "Paula", "Quinn", "Rosa", "Simon", "Tara", "Ulrich", "Vera", "Walter", "Yara",
)  # fmt: skip

CITIES = (
    "Athens", "Berlin", "Cairo", "Dublin", "Essen", "Florence", "Geneva", "Hanoi", "Istanbul", "Jakarta", "Kyoto",
    "Lisbon", "Madrid", "Nairobi", "Oslo", "Paris", "Quito", "Rome", "Seoul", "Tokyo", "Utrecht", "Vienna",
    "Warsaw", "Zurich",
)  # fmt: skip

COLORS = ("amber", "black", "blue", "brown", "green", "grey", "orange", "pink", "purple", "red", "white", "yellow")

JOBS = (
    "actor", "baker", "clerk", "dentist", "editor", "farmer", "guide", "judge", "nurse", "painter", "singer", "tailor",
)  # fmt: skip

NOUNS = (
    "apple", "arrow", "basket", "bell", "book", "bottle", "boat", "bridge", "candle", "carpet", "chair", "clock",
    "coat", "drum", "engine", "feather", "flute", "garden", "glass", "hammer", "hat", "house", "island", "jacket",
    "kettle", "key", "kite", "ladder", "lamp", "letter", "map", "mirror", "needle", "onion", "paper", "pencil",
    "piano", "plate", "ring", "river", "rope", "saddle", "shell", "spoon", "table", "tower", "violin", "window",
)  # fmt: skip

FIELDS = (
    "age", "amount", "count", "depth", "height", "index", "level", "limit", "name", "offset", "price", "rate",
    "score", "size", "speed", "start", "step", "total", "value", "weight", "width", "year",
)  # fmt: skip

CLASSES = (
    "Account", "Camera", "Device", "Event", "Filter", "Invoice", "Job", "Message", "Order", "Player", "Sensor",
    "Ticket",
)  # fmt: skip
